"""W-TinyLFU: a small LRU window, then a segmented LRU that admits only what is used more often.

Einziger, Friedman and Manes 2017, doi:10.1145/3149371: a window of one slot in a hundred, the rest
segmented LRU with four fifths protected. Uses are counted exactly, since experts are few, and
halved whenever they reach ten times the slots.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.segments import Segments, leave, move, new_segments, oldest
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import NO_EVENT, Shelf, hook

WINDOW, PROBATION, PROTECTED = 0, 1, 2
COUNTED_USES_A_SLOT = 10


class State(NamedTuple):
    """Three queues and the counts."""

    segments: Segments
    uses: NDArray[np.int64]  # [items]
    counted: NDArray[np.int64]  # [1] uses since they were halved
    limits: NDArray[np.int64]  # [3] slots of window and protected, uses until they are halved


def new_state(setup: Setup) -> State:
    """Empty; the window has one slot at least."""
    window = max(setup.slots // 100, 1)
    limits = [window, (setup.slots - window) * 4 // 5, COUNTED_USES_A_SLOT * setup.slots]
    return State(
        new_segments(setup.items, 3),
        np.zeros(setup.items, np.int64),
        np.zeros(1, np.int64),
        np.array(limits, np.int64),
    )


@hook
def arrive(shelf: Shelf, state: State, item: int) -> None:
    """Count the use."""
    state.uses[item] += 1
    state.counted[0] += 1
    if state.counted[0] >= state.limits[2]:
        state.counted[0] = 0
        for other in range(len(state.uses)):
            state.uses[other] >>= 1


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Count the use; within the main part a second use protects."""
    arrive(shelf, state, item)
    if state.segments.where[item] == WINDOW:
        move(state.segments, item, WINDOW)
        return
    move(state.segments, item, PROTECTED)
    if state.segments.length[PROTECTED] > state.limits[1]:
        move(state.segments, oldest(state.segments, PROTECTED, shelf, NO_EVENT), PROBATION)


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """Where the window is full, its oldest or the main part's oldest, whichever is used less."""
    candidate = -1
    if state.segments.length[WINDOW] >= state.limits[0]:
        candidate = oldest(state.segments, WINDOW, shelf, event)
    victim = oldest(state.segments, PROBATION, shelf, event)
    if victim == -1:
        victim = oldest(state.segments, PROTECTED, shelf, event)
    if victim == -1:
        victim = oldest(state.segments, WINDOW, shelf, event) if candidate == -1 else candidate
        if victim == -1:
            return -1
    elif candidate != -1 and candidate != victim:
        if state.uses[candidate] > state.uses[victim]:
            move(state.segments, candidate, PROBATION)
        else:
            victim = candidate
    leave(state.segments, victim)
    return victim


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Into the window; while nothing had to go, what it cannot hold goes on to the main part."""
    move(state.segments, item, WINDOW)
    if state.segments.length[WINDOW] > state.limits[0]:
        move(state.segments, oldest(state.segments, WINDOW, shelf, NO_EVENT), PROBATION)
