"""LRU caches of every layer at several sizes at once, moved on a step at a time.

Contract atomic, as `moeprof.cache`: all experts that a step needs in a layer are looked up against
the state before it; then all of them are the most recently used, in the order the batch first
names them. A cache of C slots holds an expert if and only if fewer than C others were used since
(Mattson et al. 1970, doi:10.1147/sj.92.0078), so one order serves every size. Compiled loops would
be faster over a whole recording; over the few steps of a poll NumPy is, since nothing compiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_NEVER = np.iinfo(np.int32).max


class Looked(NamedTuple):
    """What one step found. S sizes, L layers."""

    distinct: NDArray[np.int64]  # [L] experts that the step needs: the accesses
    hits: NDArray[np.int64]  # [S, L]


class LruCaches:
    """A cache a layer, of each of `slots`; empty at first."""

    def __init__(self, layers: int, experts: int, slots: Sequence[int]) -> None:
        self._slots = [min(n, experts) for n in slots]
        self._places = sorted({experts - n for n in self._slots})  # of the oldest in a cache
        self._layer = np.arange(layers)[:, None]
        self._used_at = np.full((layers, experts), -1, np.int64)  # all that are used differ
        self._now = 0

    def look_up(self, experts: NDArray[np.integer], recorded: NDArray[np.bool_] | None) -> Looked:
        """One step: `experts` [L, T, k] of its rows, where `recorded` [L, T] is True."""
        size = self._used_at.shape[1]
        ids = experts.reshape(len(experts), -1)
        if recorded is not None:
            missing = ~np.repeat(recorded, experts.shape[2], axis=1)
            ids = np.where(missing, size, ids)  # a place of its own, that is then left out
        first = np.full((len(ids), size + 1), _NEVER, np.int32)
        # From the back, so that of an expert's places the first stays. A reversed view would not
        # do: NumPy walks one in order of memory.
        last_to_first = np.arange(ids.shape[1], dtype=np.int32)[::-1].copy()
        first[self._layer, ids[:, last_to_first]] = last_to_first
        first = first[:, :size]
        needed = first != _NEVER
        hits = self._hits(needed)
        self._used_at = np.where(needed, first.astype(np.int64) + self._now, self._used_at)
        self._now += ids.shape[1]
        return Looked(needed.sum(axis=1), hits)

    def _hits(self, needed: NDArray[np.bool_]) -> NDArray[np.int64]:
        """[S, L] of the needed experts those that are among the last used, by size."""
        hits = np.zeros((len(self._slots), len(needed)), np.int64)
        if self._slots:
            order = np.partition(self._used_at, self._places, axis=1)
        for row, slots in zip(hits, self._slots, strict=True):
            oldest = np.maximum(order[:, -slots], 0)[:, None]
            row += (needed & (self._used_at >= oldest)).sum(axis=1)
        return hits
