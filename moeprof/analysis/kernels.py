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
def walk_reuse(
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    request: NDArray[np.int64],
    experts: NDArray[np.unsignedinteger],
    recorded: NDArray[np.bool_],
    size: int,
    lags: NDArray[np.int64],
    repeats: NDArray[np.int64],
    gaps: NDArray[np.int64],
) -> None:
    """Count experts shared by tokens some way apart, and the way back to each expert's last use.

    Tokens are `rows` in order, in runs without a gap; `request` [rows]; experts [tokens, k] below
    `size`. Adds to `repeats` [lags, 2] shared experts and pairs; to `gaps` the tokens of the same
    request back to the last use, as the last entry where there are more, as entry 0 first uses.
    """
    last = np.full(size, -1, np.int64)
    began = 0
    for run in range(starts.shape[0] - 1):
        if request[starts[run]] != request[began]:
            began = starts[run]
        for place in range(starts[run], starts[run + 1]):
            row = rows[place]
            if recorded[row]:
                for index in range(lags.shape[0]):
                    before = place - lags[index]
                    if before >= starts[run] and recorded[rows[before]]:
                        repeats[index, 0] += _shared(experts[row], experts[rows[before]])
                        repeats[index, 1] += 1
                for slot in range(experts.shape[1]):
                    used = last[experts[row, slot]]
                    gap = place - used if used >= began else 0
                    gaps[min(gap, gaps.shape[0] - 1)] += 1
                    last[experts[row, slot]] = place


@njit(cache=True, nogil=True, inline="always")
def _shared(one: NDArray[np.unsignedinteger], other: NDArray[np.unsignedinteger]) -> int:
    """How many ids two tokens have in common."""
    count = 0
    for a in one:
        for b in other:
            count += a == b
    return count


@njit(cache=True, nogil=True)
def walk_windows(
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    experts: NDArray[np.unsignedinteger],
    recorded: NDArray[np.bool_],
    size: int,
    widths: NDArray[np.int64],
    windows: NDArray[np.int64],
) -> None:
    """Add to `windows` [widths, 2] the distinct experts of whole windows of a run, and windows.

    A window with a token that was not recorded does not count.
    """
    stamp = np.full(size, -1, np.int64)
    number = 0
    for index in range(widths.shape[0]):
        for run in range(starts.shape[0] - 1):
            for begin in range(starts[run], starts[run + 1] - widths[index] + 1, widths[index]):
                distinct = 0
                whole = True
                for place in range(begin, begin + widths[index]):
                    whole &= recorded[rows[place]]
                    for expert in experts[rows[place]]:
                        distinct += stamp[expert] != number
                        stamp[expert] = number
                number += 1
                if whole:
                    windows[index, 0] += distinct
                    windows[index, 1] += 1


@njit(cache=True, nogil=True)
def mean_products(values: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """[min(most, n) + 1, columns] means, over all sets of j of n rows, of the rows' product."""
    rows, columns = values.shape
    means = np.zeros((min(most, rows) + 1, columns))
    means[0] = 1.0
    for row in range(rows):
        n = row + 1
        for j in range(min(most, n), 0, -1):
            for column in range(columns):
                kept = (n - j) * means[j, column]
                means[j, column] = (kept + j * values[row, column] * means[j - 1, column]) / n
    return means
