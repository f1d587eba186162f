"""LFRU: uses divided by the time since the last one; the lowest goes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook, pinned


class State(NamedTuple):
    """Uses also while an item is not resident, as moe-cache-eval counts them."""

    uses: NDArray[np.int64]  # [items]
    last: NDArray[np.int64]  # [items] time of the last use, in events


def new_state(setup: Setup) -> State:
    """Nothing was used."""
    return State(np.zeros(setup.items, np.int64), np.zeros(setup.items, np.int64))


@hook
def arrive(shelf: Shelf, state: State, item: int) -> None:
    """Count the use."""
    state.uses[item] += 1
    state.last[item] = shelf.clock[1]


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Count the use."""
    arrive(shelf, state, item)


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Known already."""


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The lowest rate; of equals the lowest id."""
    victim, lowest = -1, np.inf
    for other in range(len(state.uses)):
        if shelf.resident[other] and not pinned(shelf, other, event):
            rate = state.uses[other] / (shelf.clock[1] - state.last[other] + 1)
            if rate < lowest:
                victim, lowest = other, rate
    return victim
