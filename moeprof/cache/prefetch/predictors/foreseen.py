"""Predictors that are told the answer: all of it, or a stated share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.events import EventChunk
from moeprof.cache.prefetch.predictors.names import Question
from moeprof.cache.prefetch.predictors.past import nobody


class Oracle:
    """What will be needed, in order of first use."""

    def __init__(self, question: Question) -> None:
        self._question = question

    def name(self, chunk: EventChunk) -> NDArray[np.int32]:
        """See `Predictor`."""
        from moeprof.cache.prefetch.predictors.kernels import name_with_foresight

        demand = self._question.demand
        named = nobody(chunk, self._question.width)
        name_with_foresight(
            demand.starts, demand.experts, chunk.first_event * demand.layers,
            self._question.lookahead, named,
        )  # fmt: skip
        return named


class Recall:
    """Each needed expert with probability `recall`, and wrong ones for the rest of the width."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._seed = np.random.default_rng(question.seed).integers(2**63, dtype=np.uint64)

    def name(self, chunk: EventChunk) -> NDArray[np.int32]:
        """See `Predictor`."""
        from moeprof.cache.prefetch.predictors.kernels import name_with_recall

        demand = self._question.demand
        named = nobody(chunk, self._question.width)
        name_with_recall(
            demand.starts, demand.experts, chunk.first_event * demand.layers,
            self._question.lookahead, demand.size, self._question.recall, self._seed, named,
        )  # fmt: skip
        return named
