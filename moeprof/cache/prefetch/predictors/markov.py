"""Layer to layer: an expert says which experts tend to come some layers later."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.events import EventChunk
from moeprof.cache.prefetch.demand import bounded_chunks, replayed_rows
from moeprof.cache.prefetch.predictors.names import Question
from moeprof.cache.prefetch.predictors.past import nobody


class Markov:
    """A table a layer of how often each expert is followed by each other, learned token by token.

    Past the last layer it leads to the first layers of the request's next token.
    """

    def __init__(self, question: Question) -> None:
        self._question = question
        demand = question.demand
        came = np.zeros((demand.layers, demand.size, demand.size))
        uses = np.zeros((demand.layers, demand.size))
        self._learn(came, uses)
        self._share = came / np.maximum(uses, 1)[:, :, None]

    def _learn(self, came: NDArray[np.float64], uses: NDArray[np.float64]) -> None:
        from moeprof.cache.prefetch.predictors.kernels import learn_transitions

        trace, steps, demand = self._question[:3]
        until = steps._replace(starts=steps.starts[: self._question.learned_steps + 1])
        rows = replayed_rows(trace, until)
        request = trace.request[rows].astype(np.int64)
        people = int(request.max(initial=-1)) + 1
        before = (
            np.full(people, -1, np.int64),
            np.full((people, demand.layers, trace.top_k), -1, np.int64),
        )
        for chunk in bounded_chunks(trace, until):
            begin = until.starts[chunk.first_event]
            learn_transitions(
                chunk.experts, chunk.recorded, chunk.starts, chunk.first_event,
                request[begin:], self._question.lookahead, before, came, uses,
            )  # fmt: skip

    def name(self, chunk: EventChunk) -> NDArray[np.int32]:
        """See `Predictor`."""
        from moeprof.cache.prefetch.predictors.kernels import name_by_transitions

        demand = self._question.demand
        named = nobody(chunk, self._question.width)
        name_by_transitions(
            demand.starts, demand.experts, demand.tokens, chunk.first_event * demand.layers,
            self._share, named,
        )  # fmt: skip
        return named
