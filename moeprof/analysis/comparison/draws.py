"""Which requests stand for A and for B in each draw: the recordings, resamples, permutations.

Resamples give intervals: requests drawn with replacement, the same ones of A and of B where they
are pairs. Permutations give the null "A and B are requests of one kind": requests are dealt anew
to A and to B, or, where they are pairs, the two of a pair change sides.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.comparison.pairing import Requests
from moeprof.analysis.uncertainty import RESAMPLES, draw_requests


class Draws(NamedTuple):
    """Weights of requests, a row a draw; row 0 of `a` and `b` are the recordings themselves."""

    a: NDArray[np.float32]  # [1 + resamples, requests of A]
    b: NDArray[np.float32]  # [1 + resamples, requests of B]
    # 1 where a request stands for A, else it does for B: [permutations, requests of A, then of B];
    # of pairs [permutations, pairs] 1 where A's stands for A, else the two change sides
    dealt: NDArray[np.float32]
    paired: bool

    @property
    def resampled(self) -> slice:
        """Of all draws, those that are resamples."""
        return slice(1, len(self.a))

    @property
    def permuted(self) -> slice:
        """Of all draws, those that are permutations."""
        return slice(len(self.a), None)


def draw(
    a: Requests, b: Requests, *, paired: bool, permutations: int, seed: int, labels: list[str]
) -> Draws:
    """The draws, resamples among requests of the same label; the recordings alone where either
    has a single request, of which no spread is known.
    """
    counts = (len(a.indices), len(b.indices))
    weights = [np.ones((1, count), np.float32) for count in counts]
    if min(counts) < 2:
        return Draws(weights[0], weights[1], np.zeros((0, sum(counts)), np.float32), False)
    for side, requests in enumerate((a, b)):
        drawn = draw_requests(
            counts[side],
            resamples=RESAMPLES,
            seed=seed if paired else seed + side,
            strata=label_codes(requests, labels),
        )
        weights[side] = np.concatenate([weights[side], drawn.astype(np.float32)])
    rng = np.random.default_rng(seed)
    return Draws(weights[0], weights[1], _deal(rng, counts, paired, permutations), paired)


def label_codes(requests: Requests, labels: list[str]) -> NDArray[np.intp]:
    """[requests] place of each one's label in `labels`, len(labels) where it is not there."""
    code = {label: place for place, label in enumerate(labels)}
    return np.array([code.get(label, len(labels)) for label in requests.labels], np.intp)


def _deal(
    rng: np.random.Generator, counts: tuple[int, int], paired: bool, permutations: int
) -> NDArray[np.float32]:
    if paired:
        return rng.integers(0, 2, (permutations, counts[0]), np.uint8).astype(np.float32)
    dealt = np.zeros((permutations, sum(counts)), np.uint8)
    dealt[:, : counts[0]] = 1
    return rng.permuted(dealt, axis=1).astype(np.float32)
