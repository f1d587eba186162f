"""Where the distribution of load shifts: change points over blocks of consecutive requests.

Requests in order of their first token are put in blocks of about equal tokens. A split of a
stretch of blocks in two is measured by Pearson's statistic of homogeneity, summed over layers,
X(b) = sum over layers and experts of D_e^2 / (p_e n_L n_R / n), D_e = n_Le - n_L p_e,
with n_Le the left side's assignments to expert e, p_e the stretch's share and n_L + n_R = n. The
split with the largest X stands if it is larger than under permutations of the blocks, so that
tokens of a request count as one observation; its sides are then searched anew (binary
segmentation, Vostrikova 1981). The largest of all splits is compared with the largest of all
splits, and every stretch is tested at LEVEL / STRETCHES: with that Bonferroni bound, a recording
without any shift is said to have one with a chance of LEVEL at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.uncertainty import permutation_p
from moeprof.result import Result

LEVEL = 0.05
STRETCHES = 7  # at most so many stretches are tested
SHUFFLES = 999
BLOCKS = 64
_SIDE = 2  # blocks at least on either side of a split: one odd request is no shift
FEWEST = 8  # blocks below which no split can be significant


@dataclass(frozen=True)
class ChangePoint(Result):
    """One shift of the load between the block before it and the block after."""

    request: int  # index of the first request after it
    step: int  # engine step of that request's first token
    share: float  # of the recording's tokens that are before it
    p_value: float  # of the split, against permutations of blocks
    distance: (
        float  # total variation, mean over layers, between the stretches that it parts: 0 to 1
    )
    imbalance_before: float  # mean over layers, of the stretch before it
    imbalance_after: float


def find_splits(load: NDArray[np.int64], seed: int = 0) -> list[tuple[int, float]]:
    """(first block after it, p-value) of each shift, in order; `load` [blocks, layers, experts]."""
    rng = np.random.default_rng(seed)
    found: list[tuple[int, float]] = []
    stretches, tested = [(0, len(load))], 0
    while stretches and tested < STRETCHES:
        start, stop = stretches.pop(0)
        if stop - start < FEWEST:
            continue
        tested += 1
        split, p = _best_split(load[start:stop], rng)
        if p <= LEVEL / STRETCHES:
            found.append((start + split, p))
            stretches += [(start, start + split), (start + split, stop)]
    return sorted(found)


def _best_split(load: NDArray[np.int64], rng: np.random.Generator) -> tuple[int, float]:
    """The split of all blocks with the largest statistic, and its p-value."""
    products, sizes = _products(load)
    statistics = split_statistics(products, sizes)
    orders = rng.permuted(np.tile(np.arange(len(load)), (SHUFFLES, 1)), axis=1)
    shuffled = products[orders[:, :, None], orders[:, None, :]]
    null = split_statistics(shuffled, sizes[orders]).max(axis=1)
    best = int(statistics.argmax())
    return best + _SIDE, permutation_p(float(statistics[best]), null)


def _products(load: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[blocks, blocks] scalar products of the blocks' deviations, and [blocks] their assignments.

    All that the statistic of any order of the blocks needs: permutations cost no pass over experts.
    """
    sizes = load.sum(axis=2)  # [blocks, layers]
    share = load.sum(axis=0) / np.maximum(sizes.sum(axis=0), 1)[:, None]
    deviation = (load - sizes[:, :, None] * share) / np.sqrt(np.where(share > 0, share, 1))
    flat = deviation.reshape(len(load), -1)
    return flat @ flat.T, sizes.mean(axis=1)


def split_statistics(
    products: NDArray[np.float64], sizes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[..., splits] X of each split with at least _SIDE blocks on either side.

    `products` [..., blocks, blocks] and `sizes` [..., blocks] in the order to be split.
    """
    left = np.cumsum(sizes, axis=-1)
    added = 2 * np.tril(products, -1).sum(axis=-1) + np.diagonal(products, axis1=-2, axis2=-1)
    squares = np.cumsum(added, axis=-1)  # |sum of the first b blocks' deviations|^2
    at = slice(_SIDE - 1, sizes.shape[-1] - _SIDE)
    weight = left[..., at] * (left[..., -1:] - left[..., at]) / left[..., -1:]
    statistics: NDArray[np.float64] = squares[..., at] / np.maximum(weight, 1e-9)
    return statistics
