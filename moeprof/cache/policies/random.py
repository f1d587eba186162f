"""Random: any resident may go, drawn by a seeded xorshift generator."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook, ignore, ignore_hit, pinned

arrive, hit = ignore, ignore_hit


class State(NamedTuple):
    """Residents without gaps, so that one can be drawn."""

    resident: NDArray[np.int32]  # [items]
    held: NDArray[np.int64]  # [1]
    seed: NDArray[np.uint64]  # [1]


def new_state(setup: Setup) -> State:
    """Nobody is resident."""
    seed = np.random.default_rng(setup.seed).integers(1, 2**63, 1).astype(np.uint64)
    return State(np.zeros(setup.items, np.int32), np.zeros(1, np.int64), seed)


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """A resident at random, or the next that `event` does not need."""
    word = state.seed[0]
    word ^= word << np.uint64(13)
    word ^= word >> np.uint64(7)
    word ^= word << np.uint64(17)
    state.seed[0] = word
    count = state.held[0]
    place = np.int64(word % np.uint64(max(count, 1)))
    for _ in range(count):
        victim = state.resident[place]
        if not pinned(shelf, victim, event):
            state.held[0] = count - 1
            state.resident[place] = state.resident[count - 1]
            return int(victim)
        place = (place + 1) % count
    return -1


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """One more to draw from."""
    state.resident[state.held[0]] = item
    state.held[0] += 1
