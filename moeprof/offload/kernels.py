"""Compiled loop of the second tier."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def lru_misses(
    requests: NDArray[np.int64], initial: NDArray[np.int64], items: int, slots: int
) -> NDArray[np.bool_]:
    """[requests] whether each misses an LRU of `slots` out of `items`, asked one after the other.

    It holds `initial` at the start, oldest first, at most `slots` of them.
    """
    head = items  # of a ring through the resident items, newest first
    after, before = np.empty(items + 1, np.int64), np.empty(items + 1, np.int64)
    after[head] = before[head] = head
    resident = np.zeros(items, np.bool_)
    missed = np.zeros(len(requests), np.bool_)
    held = 0
    for place in range(-len(initial), len(requests)):
        item = initial[place + len(initial)] if place < 0 else requests[place]
        if resident[item]:
            after[before[item]], before[after[item]] = after[item], before[item]
        else:
            if place >= 0:
                missed[place] = True
            if held == slots:
                oldest = before[head]
                before[head], after[before[oldest]] = before[oldest], head
                resident[oldest] = False
            else:
                held += 1
            resident[item] = True
        after[item], before[item] = after[head], head
        before[after[head]] = item
        after[head] = item
    return missed
