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
