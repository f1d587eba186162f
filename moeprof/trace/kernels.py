"""Compiled loops over requests. Import this only where one is called."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def schedule(
    first: NDArray[np.int64], prompt: NDArray[np.int64], max_seqs: int, max_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Continuous batching: request r is rows first[r] to first[r + 1], prompt[r] of them prefill.

    Returns all rows in order of service, and [steps + 1] where steps begin.
    """
    total, waiting, count = first[-1], 0, 0
    order, starts = np.empty(total, np.int64), np.zeros(total + 1, np.int64)
    running, at = np.empty(max_seqs, np.int64), first[:-1].copy()
    served = steps = 0
    while served < total:
        while count < max_seqs and waiting < len(prompt):
            running[count] = waiting
            count += 1
            waiting += 1
        begun, taken = served, np.zeros(count, np.int64)
        for i in range(count):  # one token of every request past its prompt
            request = running[i]
            if at[request] - first[request] >= prompt[request]:
                taken[i] = 1
                served += 1
        room, served = max_tokens - (served - begun), begun
        kept = 0
        for i in range(count):
            request = running[i]
            left = prompt[request] - (at[request] - first[request])
            if left > 0:
                taken[i] = min(left, room)
                room -= taken[i]
            for _ in range(taken[i]):
                order[served] = at[request]
                at[request] += 1
                served += 1
            if at[request] < first[request + 1]:
                running[kept] = request
                kept += 1
        count = kept
        steps += 1
        starts[steps] = served
    return order, starts[: steps + 1]
