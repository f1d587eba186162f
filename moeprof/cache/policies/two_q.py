"""2Q: a FIFO for what is new, an LRU for what came back soon after it was thrown out.

Johnson and Shasha, VLDB 1994, full version: a quarter of the slots are for the new, and a ghost
remembers half as many items as there are slots.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.segments import Segments, leave, move, new_segments, oldest, trim
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook

NEW, OFTEN, GHOST = 0, 1, 2


class State(NamedTuple):
    """Three queues."""

    segments: Segments
    new_slots: NDArray[np.int64]  # [1]
    ghost_slots: NDArray[np.int64]  # [1]
    known: NDArray[np.uint8]  # [1] whether the ghost remembers the item being served


def new_state(setup: Setup) -> State:
    """Empty."""
    return State(
        new_segments(setup.items, 3),
        np.array([max(setup.slots // 4, 1)], np.int64),
        np.array([setup.slots // 2], np.int64),
        np.zeros(1, np.uint8),
    )


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """To the head of its LRU; a new one stays where it is."""
    if state.segments.where[item] == OFTEN:
        move(state.segments, item, OFTEN)


@hook
def arrive(shelf: Shelf, state: State, item: int) -> None:
    """The ghost forgets it."""
    state.known[0] = state.segments.where[item] == GHOST
    leave(state.segments, item)


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The oldest of the new where they are more than their share, else the least recently used."""
    new = oldest(state.segments, NEW, shelf, event)
    often = oldest(state.segments, OFTEN, shelf, event)
    if new != -1 and (often == -1 or state.segments.length[NEW] > state.new_slots[0]):
        move(state.segments, new, GHOST)
        trim(state.segments, GHOST, state.ghost_slots[0])
        return new
    if often == -1:
        return -1
    leave(state.segments, often)
    return often


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Known to the ghost: used often."""
    move(state.segments, item, OFTEN if state.known[0] else NEW)
