"""Least-Stale: what the step at work has not touched goes first, the least recently used of it.

SpecMD (Hoang et al. 2026, arXiv 2602.03921) in the reading of arXiv 2608.07911 (moe-cache-eval),
which finds that without prefetch it is LRU to the last hit; experts that were brought in ahead
of their use are what sets the two apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.queues import Queues, new_queues, push, tail, unlink
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook, ignore, pinned

arrive = ignore


class State(NamedTuple):
    """One queue, newest use or arrival at the head."""

    queue: Queues
    touched: NDArray[np.int64]  # [items] the step that used the item last, or brought it in


def new_state(setup: Setup) -> State:
    """Nobody is resident."""
    return State(new_queues(setup.items, 1), np.full(setup.items, -1, np.int64))


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """At the head."""
    state.touched[item] = shelf.clock[0]
    push(state.queue, len(shelf.resident), item)


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """To the head."""
    unlink(state.queue, item)
    insert(shelf, state, item, event)


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The oldest that this step has not touched, else the oldest."""
    sentinel = len(shelf.resident)
    victim = state.queue.newer[sentinel]
    while victim != sentinel and (
        state.touched[victim] == shelf.clock[0] or pinned(shelf, victim, event)
    ):
        victim = state.queue.newer[victim]
    if victim == sentinel:
        victim = tail(state.queue, sentinel, shelf, event)
    if victim >= 0:
        unlink(state.queue, victim)
    return int(victim)
