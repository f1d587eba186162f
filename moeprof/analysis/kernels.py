"""The compiled inner loops of the analyses. Import this only where one is called."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def add_assignments(
    experts: NDArray[np.unsignedinteger], group: NDArray[np.int32], counts: NDArray[np.int64]
) -> int:
    """Add every id of `experts` [rows, k] to `counts` [groups, experts].

    Returns how many ids name no expert: those are passed over, since Numba would write outside of
    `counts` and not complain.
    """
    foreign = 0
    for row in range(experts.shape[0]):
        for slot in range(experts.shape[1]):
            if experts[row, slot] >= counts.shape[1]:
                foreign += 1
            else:
                counts[group[row], experts[row, slot]] += 1
    return foreign


@njit(cache=True, nogil=True)
def add_gaps(
    experts: NDArray[np.unsignedinteger],
    there: NDArray[np.bool_],
    request: NDArray[np.int64],
    last: NDArray[np.int64],
    gaps: NDArray[np.int64],
) -> None:
    """Add to `gaps` the reuses of `experts` [tokens, k] by tokens back; the first uses to gaps[0].

    `request` [tokens] has those of one request next to each other; `last` [experts] is -1 at first.
    A longer way back counts as the longest; ids of tokens that are `there` have a place in `last`.
    """
    begin = 0
    for token in range(experts.shape[0]):
        if token and request[token] != request[token - 1]:
            begin = token
        if not there[token]:
            continue
        for slot in range(experts.shape[1]):
            used = last[experts[token, slot]]
            way = token - used if used >= begin else 0
            gaps[min(way, gaps.shape[0] - 1)] += 1
            last[experts[token, slot]] = token
