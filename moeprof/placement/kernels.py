"""The compiled pass over tokens that counts where they go. Import this only where one is called."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def touched(
    experts: NDArray[np.unsignedinteger],
    first: NDArray[np.int64],
    places: NDArray[np.int64],
    chance: NDArray[np.float64],
    wanted: NDArray[np.bool_],
    tokens: NDArray[np.float64],
) -> int:
    """Tokens that reach each place (a GPU or a node) at least once, expected over replicas.

    `experts` [rows, k] of the rows that are `wanted` [rows]. Expert e is used in
    places[first[e]:first[e + 1]], with the chances beside them. Adds to `tokens` [places] the
    chance that one of a token's experts is used there. Returns how many ids name no expert.
    """
    missed = np.ones(len(tokens))  # chance that no expert so far was used in a place
    met = np.zeros(experts.shape[1] * len(tokens), np.int64)
    foreign = 0
    for row in range(len(experts)):
        if not wanted[row]:
            continue
        count = 0
        for slot in range(experts.shape[1]):
            expert = experts[row, slot]
            if expert >= len(first) - 1:
                foreign += 1
                continue
            for i in range(first[expert], first[expert + 1]):
                if missed[places[i]] == 1.0:
                    met[count] = places[i]
                    count += 1
                missed[places[i]] *= 1.0 - chance[i]
        for i in range(count):
            tokens[met[i]] += 1.0 - missed[met[i]]
            missed[met[i]] = 1.0
    return foreign
