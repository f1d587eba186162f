"""A step-time function on a grid of knots, so that a step of a simulation costs microseconds.

The function is evaluated where a step first needs it and never twice, and between knots it is
taken as linear in each of its arguments. Knots stand at every whole number up to 8 and 4 an octave
beyond, so that a law x^a with a between 0 and 1 is off by at most (1/4)(ln 1.25)^2 / 8 = 0.16 % an
argument, and the corner of a roofline, max(a, b x), by at most 5.6 % where it falls into the middle
of a cell (`tests/projection/serving/test_step_grid.py` holds both).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.projection.step.batch import Batch

StepSeconds = Callable[[Batch], float]

_OCTAVES = 32
_KNOTS = [*range(8), *(q * 2**octave for octave in range(1, _OCTAVES) for q in (4, 5, 6, 7))]
_PACKED = [0, *(2**octave for octave in range(_OCTAVES))]  # prompts in a step: rarely matters

Corner = tuple[int, float]  # a knot and its weight
Node = tuple[int, int, int, int, int]


class StepGrid:
    """`step_seconds` of batches with `draft_tokens` drafts a decoding sequence, interpolated.

    Raises InputError where the function answers with less than nothing or no number.
    """

    def __init__(self, step_seconds: StepSeconds, draft_tokens: int = 0) -> None:
        self._function = step_seconds
        self._draft_tokens = draft_tokens
        self._nodes: dict[Node, float] = {}

    @property
    def evaluations(self) -> int:
        """How often the function was called."""
        return len(self._nodes)

    def seconds(self, batch: Batch) -> float:
        """Seconds of one step: at a knot the function's own answer."""
        total = 0.0
        for decode, a in corners(batch.decode):
            for context, b in corners(batch.context) if decode else _NONE:
                for prefill, c in corners(batch.prefill):
                    for before, d in corners(batch.prefill_context) if prefill else _NONE:
                        for parts, e in packed(batch.prefill_sequences) if prefill else _ONE:
                            node = (decode, context, prefill, before, parts)
                            total += a * b * c * d * e * self._at(node)
        return total

    def decode_seconds(self, decode: int, contexts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds of steps that only decode, [step]; `contexts` [step] ascends."""
        first, last = cell(contexts[0]), cell(contexts[-1]) + 1
        knots = _KNOTS[first : last + 1]
        total = np.zeros(len(contexts))
        for sequences, weight in corners(decode):
            values = [self._at((sequences, context, 0, 0, 1)) for context in knots]
            total += weight * np.interp(contexts, knots, values)
        return total

    def _at(self, node: Node) -> float:
        known = self._nodes.get(node)
        if known is None:
            decode, context, prefill, before, parts = node
            batch = Batch(decode, context, prefill, before, self._draft_tokens, parts)
            known = self._nodes[node] = float(self._function(batch)) if batch.tokens else 0.0
            if not (isfinite(known) and known >= 0):
                raise InputError(f"a step of {batch} takes {known} s, which is no time")
        return known


_NONE: list[Corner] = [(0, 1.0)]
_ONE: list[Corner] = [(1, 1.0)]


def cell(value: float) -> int:
    """Index of the last knot at or below `value`."""
    if not 0 <= value < _KNOTS[-1]:
        raise InputError(f"a step with {value} sequences or tokens is beyond {_KNOTS[-1]}")
    return bisect_right(_KNOTS, value) - 1


def corners(value: float) -> list[Corner]:
    """The knots around `value` with their weights, which sum to 1."""
    return _between(_KNOTS, cell(value), value)


@lru_cache(maxsize=1024)
def packed(prompts: int) -> list[Corner]:
    """As `corners`, on the coarse knots for how many prompts share a step."""
    return _between(_PACKED, bisect_right(_PACKED, prompts) - 1, prompts)


def _between(knots: list[int], low: int, value: float) -> list[Corner]:
    share = (value - knots[low]) / (knots[low + 1] - knots[low])
    if not share:
        return [(knots[low], 1.0)]
    return [(knots[low], 1 - share), (knots[low + 1], share)]
