"""CLOCK: FIFO with a second chance for what was used since it came or was last spared.

Corbato 1968; what libCacheSim calls Clock with one bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.queues import Queues, new_queues, push, unlink
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook, ignore, pinned

arrive = ignore


class State(NamedTuple):
    """One queue and one bit an item."""

    queue: Queues
    used: NDArray[np.uint8]  # [items]


def new_state(setup: Setup) -> State:
    """An empty clock."""
    return State(new_queues(setup.items, 1), np.zeros(setup.items, np.uint8))


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Remember the use."""
    state.used[item] = 1


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The oldest that was not used since it was last looked at."""
    sentinel = len(shelf.resident)
    kept = state.queue.older[sentinel]  # the newest: once it comes up, all were looked at
    spared = 0
    while True:
        victim = state.queue.newer[sentinel]
        if victim == sentinel:
            return -1
        unlink(state.queue, victim)
        needed = pinned(shelf, victim, event)
        if not needed and not state.used[victim]:
            return int(victim)
        if not needed:
            state.used[victim] = 0
        push(state.queue, sentinel, victim)
        spared += victim == kept
        if spared == 3:  # two whole rounds: all that is left is needed
            return -1


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """At the head, its bit clear."""
    state.used[item] = 0
    push(state.queue, len(shelf.resident), item)
