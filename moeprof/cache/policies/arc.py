"""ARC: recency and frequency each have a queue and a ghost, and a hit in a ghost moves the border.

Megiddo and Modha, FAST 2003, as libCacheSim computes it: the border is a real number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.segments import Segments, leave, move, new_segments, oldest
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook

RECENT, OFTEN, RECENT_GHOST, OFTEN_GHOST = 0, 1, 2, 3


class State(NamedTuple):
    """Four queues and the border between the two that are resident."""

    segments: Segments
    target: NDArray[np.float64]  # [1] slots that RECENT should have
    from_ghost: NDArray[np.int64]  # [1] the ghost that the item being served was in, or -1
    slots: NDArray[np.int64]  # [1]


def new_state(setup: Setup) -> State:
    """Empty; everything for frequency."""
    return State(
        new_segments(setup.items, 4),
        np.zeros(1),
        np.array([-1], np.int64),
        np.array([setup.slots], np.int64),
    )


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Used twice: frequent."""
    move(state.segments, item, OFTEN)


@hook
def arrive(shelf: Shelf, state: State, item: int) -> None:
    """A hit in a ghost moves the border towards its queue."""
    ghost = state.segments.where[item]
    state.from_ghost[0] = ghost
    if ghost == RECENT_GHOST:
        step = max(state.segments.length[OFTEN_GHOST] / state.segments.length[RECENT_GHOST], 1.0)
        state.target[0] = min(state.target[0] + step, float(state.slots[0]))
    elif ghost == OFTEN_GHOST:
        step = max(state.segments.length[RECENT_GHOST] / state.segments.length[OFTEN_GHOST], 1.0)
        state.target[0] = max(state.target[0] - step, 0.0)
    leave(state.segments, item)


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The oldest of the queue that is over the border; it is remembered, but for the oldest
    recent one where the recent queue alone fills the cache.
    """
    full = state.segments.length[RECENT] + state.segments.length[RECENT_GHOST] + 1 > state.slots[0]
    unknown = state.from_ghost[0] == -1
    alone = unknown and full and state.segments.length[RECENT_GHOST] == 0
    over = state.segments.length[RECENT] > state.target[0] or (
        state.segments.length[RECENT] == state.target[0] and state.from_ghost[0] == OFTEN_GHOST
    )
    from_recent = (
        alone or state.segments.length[OFTEN] == 0 or (state.segments.length[RECENT] > 0 and over)
    )
    victim = oldest(state.segments, RECENT if from_recent else OFTEN, shelf, event)
    if victim == -1:
        from_recent = not from_recent
        victim = oldest(state.segments, RECENT if from_recent else OFTEN, shelf, event)
        if victim == -1:
            return -1
    if unknown:
        _forget_one(state, full)
    if alone:
        leave(state.segments, victim)
    else:
        move(state.segments, victim, RECENT_GHOST if from_recent else OFTEN_GHOST)
    return victim


@hook
def _forget_one(state: State, full: bool) -> None:
    """Make room in the ghosts for what is evicted next."""
    items = len(state.segments.where)
    if full:
        if state.segments.length[RECENT_GHOST] > 0:
            leave(state.segments, state.segments.queue.newer[items + RECENT_GHOST])
    elif state.segments.length[OFTEN_GHOST] > 0 and _known(state.segments) >= 2 * state.slots[0]:
        leave(state.segments, state.segments.queue.newer[items + OFTEN_GHOST])


@hook
def _known(segments: Segments) -> int:
    """Items in all queues."""
    return int(
        segments.length[RECENT]
        + segments.length[OFTEN]
        + segments.length[RECENT_GHOST]
        + segments.length[OFTEN_GHOST]
    )


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Known to a ghost: frequent."""
    move(state.segments, item, RECENT if state.from_ghost[0] == -1 else OFTEN)
