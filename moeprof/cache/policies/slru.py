"""Segmented LRU: a second use promotes to a protected segment of four fifths of the slots.

Karedla, Love and Wherry 1994.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.segments import Segments, leave, move, new_segments, oldest
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import NO_EVENT, Shelf, hook, ignore

PROBATION, PROTECTED = 0, 1
arrive = ignore


class State(NamedTuple):
    """Two queues."""

    segments: Segments
    protected_slots: NDArray[np.int64]  # [1]


def new_state(setup: Setup) -> State:
    """Empty."""
    return State(new_segments(setup.items, 2), np.array([setup.slots * 4 // 5], np.int64))


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Protected; the oldest protected one goes back on probation where there is no room."""
    move(state.segments, item, PROTECTED)
    if state.segments.length[PROTECTED] > state.protected_slots[0]:
        move(state.segments, oldest(state.segments, PROTECTED, shelf, NO_EVENT), PROBATION)


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The oldest on probation, else the oldest protected."""
    victim = oldest(state.segments, PROBATION, shelf, event)
    if victim == -1:
        victim = oldest(state.segments, PROTECTED, shelf, event)
        if victim == -1:
            return -1
    leave(state.segments, victim)
    return victim


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """On probation."""
    move(state.segments, item, PROBATION)
