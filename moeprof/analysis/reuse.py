"""How soon the experts of a token come again: repeats some tokens apart, and reuse distances."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.expert_sets import Ids, Sets, sets_of, sizes_of
from moeprof.analysis.runs import Runs, runs_of, sum_between

LAGS = (1, 2, 4, 8, 16, 32, 64)  # tokens apart


class PairsApart:
    """The tokens of runs that stand some way apart: which are pairs, and what they share."""

    def __init__(self, runs: Runs, lags: tuple[int, ...] = LAGS) -> None:
        run = np.repeat(np.arange(len(runs.starts) - 1), np.diff(runs.starts))
        self._pairs = {lag: run[lag:] == run[:-lag] for lag in lags}
        self._bounds = runs.bounds

    def shared(self, sets: Sets, there: NDArray[np.bool_]) -> NDArray[np.int64]:
        """[lags, 2] experts that pairs share, and pairs, of the tokens that are `there`.

        `sets` [words, tokens] and `there` [tokens] stand in order of the runs.
        """
        sums = []
        for lag in self._pairs:
            pair = self._both(there, lag)
            sums.append((int((_shared(sets, lag) * pair).sum(dtype=np.int64)), int(pair.sum())))
        return np.array(sums)

    def shared_by_request(
        self, sets: Sets, there: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[requests] experts that consecutive tokens share, and [requests] such pairs."""
        pair = self._both(there, 1)
        within = np.minimum(self._bounds, len(pair))  # a pair stands at its first token
        return sum_between(_shared(sets, 1) * pair, within), sum_between(pair, within)

    def _both(self, there: NDArray[np.bool_], lag: int) -> NDArray[np.bool_]:
        pair = self._pairs[lag]
        return np.asarray(pair & there[lag:] & there[:-lag], bool)


def _shared(sets: Sets, lag: int) -> NDArray[np.uint16]:
    """[tokens - lag] how many experts a token shares with the one `lag` after it."""
    return sizes_of(sets[:, lag:] & sets[:, :-lag])


def repeats_of(
    request: NDArray[np.int32], position: NDArray[np.int32], experts: Ids, size: int
) -> NDArray[np.float64]:
    """[LAGS] repeat by lag of experts [tokens, layers, k] below `size`; NaN where no two tokens.

    Tokens in order of `request` and `position`, all of whatever phase.
    """
    pairs = PairsApart(runs_of(np.arange(len(request)), request, position))
    there = np.ones(len(request), bool)
    layers = range(experts.shape[1])
    sums = sum(pairs.shared(sets_of(experts[:, n], size), there) for n in layers)
    shared, found = np.asarray(sums).T
    share: NDArray[np.float64] = shared / np.where(found > 0, found, np.nan) / experts.shape[2]
    return share


def reuse_gaps(
    ids: Ids, there: NDArray[np.bool_], request: NDArray[np.int64], most: int
) -> NDArray[np.int64]:
    """[most + 1] reuses by tokens of the same request back to the last use; [0] first uses.

    `ids` [tokens, k] in order of request and position; a longer way back counts as `most`.
    """
    from moeprof.analysis.kernels import add_gaps  # Numba costs a second to import

    gaps = np.zeros(most + 1, np.int64)
    last = np.full(int(ids.max(initial=0)) + 1, -1)
    add_gaps(ids, there, request, last, gaps)
    return gaps
