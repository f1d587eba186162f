"""SIEVE: a hand moves from old to new and evicts the first item not used since it last passed.

Zhang et al., NSDI 2024. Items never move; new ones come at the head.
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
    """One queue, one bit an item, and the hand."""

    queue: Queues
    used: NDArray[np.uint8]  # [items]
    hand: NDArray[np.int64]  # [1] the next item to look at; the sentinel: start at the tail


def new_state(setup: Setup) -> State:
    """An empty sieve."""
    return State(
        new_queues(setup.items, 1),
        np.zeros(setup.items, np.uint8),
        np.array([setup.items], np.int64),
    )


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Remember the use."""
    state.used[item] = 1


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The first from the hand on that was not used; bits are cleared on the way."""
    sentinel = len(shelf.resident)
    victim = state.hand[0]
    rounds = 0
    while True:
        if victim == sentinel:
            victim = state.queue.newer[sentinel]
            rounds += 1
            if victim == sentinel or rounds == 4:  # two whole rounds: all that is left is needed
                return -1
        if not pinned(shelf, victim, event):
            if not state.used[victim]:
                break
            state.used[victim] = 0
        victim = state.queue.newer[victim]
    state.hand[0] = state.queue.newer[victim]
    unlink(state.queue, victim)
    return int(victim)


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """At the head, its bit clear."""
    state.used[item] = 0
    push(state.queue, len(shelf.resident), item)
