"""The compiled inner loops of the memory measurement. Import this only where one is called."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def triad(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    c: NDArray[np.float64],
    start: int,
    stop: int,
) -> None:
    """STREAM's fourth kernel on elements start to stop: a = b + 3 c."""
    for i in range(start, stop):
        a[i] = b[i] + 3.0 * c[i]


@njit(cache=True, nogil=True, fastmath=True)  # a sum in any order, or it is not vectorised
def dot(a: NDArray[np.float64], b: NDArray[np.float64], start: int, stop: int) -> float:
    """Read elements start to stop of two arrays; one alone leaves a core waiting."""
    total = 0.0
    for i in range(start, stop):
        total += a[i] * b[i]
    return total
