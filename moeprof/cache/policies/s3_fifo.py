"""S3-FIFO: a small queue filters what comes, a ghost remembers what it threw out.

Yang et al., SOSP 2023, with libCacheSim's parameters: a tenth of the slots are small, the ghost
remembers nine tenths, two uses promote.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.segments import Segments, leave, move, new_segments, oldest, trim
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook

SMALL, MAIN, GHOST = 0, 1, 2
PROMOTING_USES = 2
MOST_USES = 3


class State(NamedTuple):
    """Three queues and a small counter an item."""

    segments: Segments
    uses: NDArray[np.int64]  # [items] since it came or was last spared
    small_slots: NDArray[np.int64]  # [1]
    main_slots: NDArray[np.int64]  # [1]
    ghost_slots: NDArray[np.int64]  # [1]
    filled: NDArray[np.uint8]  # [1] 1 once something had to make room
    known: NDArray[np.uint8]  # [1] whether the ghost remembers the item being served


def new_state(setup: Setup) -> State:
    """Empty queues; the small one has one slot at least."""
    small = max(setup.slots // 10, 1)
    return State(
        new_segments(setup.items, 3),
        np.zeros(setup.items, np.int64),
        np.array([small], np.int64),
        np.array([setup.slots - small], np.int64),
        np.array([setup.slots * 9 // 10], np.int64),
        np.zeros(1, np.uint8),
        np.zeros(1, np.uint8),
    )


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Count the use."""
    state.uses[item] += 1


@hook
def arrive(shelf: Shelf, state: State, item: int) -> None:
    """Uses count from now; the ghost forgets it."""
    state.uses[item] = 0
    state.known[0] = state.segments.where[item] == GHOST
    leave(state.segments, item)


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """From main where it is over its share, else from small."""
    state.filled[0] = 1
    if state.segments.length[MAIN] > state.main_slots[0]:
        victim = _evict_main(shelf, state, event)
        if victim != -1:
            return victim
    victim = _evict_small(shelf, state, event)
    return _evict_main(shelf, state, event) if victim == -1 else victim


@hook
def _evict_main(shelf: Shelf, state: State, event: int) -> int:
    """The first that was not used since it was last spared."""
    while True:
        victim = oldest(state.segments, MAIN, shelf, event)
        if victim == -1:
            return -1
        if state.uses[victim] == 0:
            leave(state.segments, victim)
            return victim
        state.uses[victim] = min(state.uses[victim], MOST_USES) - 1
        move(state.segments, victim, MAIN)


@hook
def _evict_small(shelf: Shelf, state: State, event: int) -> int:
    """The first that was not used twice; those before it go to main."""
    while True:
        victim = oldest(state.segments, SMALL, shelf, event)
        if victim == -1:
            return -1
        if state.uses[victim] < PROMOTING_USES:
            move(state.segments, victim, GHOST)
            trim(state.segments, GHOST, state.ghost_slots[0])
            return victim
        state.uses[victim] = 0
        move(state.segments, victim, MAIN)


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """To main where the ghost remembers it or the first filling is past small, else to small."""
    filling = not state.filled[0] and state.segments.length[SMALL] >= state.small_slots[0]
    move(state.segments, item, MAIN if filling or state.known[0] else SMALL)
