"""What was needed before is needed again: in the step before, or most often of all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.events import EventChunk
from moeprof.cache.prefetch.predictors.names import Question


def nobody(chunk: EventChunk, width: int) -> NDArray[np.int32]:
    """[events, width] of -1."""
    layers, steps = chunk.experts.shape[0], len(chunk.starts) - 1
    return np.full((steps * layers, width), -1, np.int32)


class PreviousToken:
    """The experts of the same layer in the step before, those of most tokens first."""

    def __init__(self, question: Question) -> None:
        self._question = question

    def name(self, chunk: EventChunk) -> NDArray[np.int32]:
        """See `Predictor`."""
        from moeprof.cache.prefetch.predictors.kernels import name_as_before

        demand = self._question.demand
        named = nobody(chunk, self._question.width)
        name_as_before(
            demand.starts, demand.experts, demand.tokens, chunk.first_event * demand.layers,
            demand.layers - self._question.lookahead, named,
        )  # fmt: skip
        return named


class MostUsed:
    """The experts that most events of the layer named in the learning window."""

    def __init__(self, question: Question) -> None:
        demand = question.demand
        until = question.learned_steps * demand.layers
        accesses = np.diff(demand.starts[: until + 1])
        layer = np.repeat(np.arange(until) % demand.layers, accesses)
        item = layer * demand.size + demand.experts[: len(layer)]
        uses = np.bincount(item, minlength=demand.layers * demand.size)
        uses = uses.reshape(demand.layers, demand.size)
        ranked = np.argsort(-uses, axis=1, kind="stable")[:, : question.width].astype(np.int32)
        ranked[np.take_along_axis(uses, ranked, axis=1) == 0] = -1
        self._table = np.full((demand.layers, question.width), -1, np.int32)
        self._table[:, : ranked.shape[1]] = np.roll(ranked, -question.lookahead, axis=0)

    def name(self, chunk: EventChunk) -> NDArray[np.int32]:
        """See `Predictor`."""
        return np.tile(self._table, (len(chunk.starts) - 1, 1))
