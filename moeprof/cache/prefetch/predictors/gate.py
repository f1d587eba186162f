"""The next layer's router on this layer's hidden state, as the recording kept it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.events import EventChunk
from moeprof.cache.prefetch.demand import replayed_rows
from moeprof.cache.prefetch.predictors.names import Question
from moeprof.cache.prefetch.predictors.past import nobody
from moeprof.errors import InputError


class NextGate:
    """What the next layer's router chose for the event's tokens, by the sum of its weights.

    It names nothing for the first layer, which no layer stands before.
    """

    def __init__(self, question: Question) -> None:
        trace, lookahead = question.trace, question.lookahead
        if not trace.manifest.next_layer:
            raise InputError(
                f"{trace}: what the next layer's router sees was not recorded: record with "
                "--next-layer, or state its recall (predictor recall)"
            )
        if lookahead != 1:
            raise InputError(f"lookahead {lookahead}: next-gate sees one layer ahead")
        self._question = question
        self._rows = replayed_rows(trace, question.steps)
        before_next = trace.layers[:-1]
        self._experts = [trace.next_experts(layer) for layer in before_next]
        self._weights = [trace.next_weights(layer) for layer in before_next]
        # `next_experts` has recorded rows alone
        self._place = [np.cumsum(trace.recorded(layer)) - 1 for layer in before_next]

    def name(self, chunk: EventChunk) -> NDArray[np.int32]:
        """See `Predictor`."""
        from moeprof.cache.prefetch.predictors.kernels import name_by_weight

        begin = self._question.steps.starts[chunk.first_event]
        rows = self._rows[begin : begin + chunk.starts[-1]]
        named = nobody(chunk, self._question.width)
        layers = len(self._experts) + 1
        for layer, place in enumerate(self._place):
            if not len(self._experts[layer]):
                continue
            at = place[rows].clip(0)
            name_by_weight(
                self._experts[layer][at], self._weights[layer][at].astype(np.float64),
                chunk.recorded[layer], chunk.starts, self._question.demand.size,
                named[layer::layers],
            )  # fmt: skip
        return named
