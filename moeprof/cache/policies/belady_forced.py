"""Forced-admit Belady: all misses of an event are admitted, every other resident may go.

The distance to Belady with bypass is what bypassing is worth, the distance to an online policy
what knowing the future is (arXiv 2608.07911).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import NO_EVENT, Shelf, hook, ignore
from moeprof.cache.policies.tree import ABSENT, Tree, new_tree, set_key, take_lowest

arrive = ignore
FORESIGHT = True


class State(NamedTuple):
    """Keys are next uses, negated; what the event brought in has none until another comes."""

    tree: Tree
    fresh: NDArray[np.int32]  # [items] brought in by the event
    last: NDArray[np.int64]  # [2] how many, and by which event


def new_state(setup: Setup) -> State:
    """Nothing was brought in."""
    return State(
        new_tree(setup.items), np.zeros(setup.items, np.int32), np.array([0, -1], np.int64)
    )


@hook
def _settle(shelf: Shelf, state: State, event: int) -> None:
    """What earlier events brought in may go from now on."""
    if state.last[1] != event or event == NO_EVENT:
        for i in range(state.last[0]):
            item = state.fresh[i]
            if shelf.resident[item]:
                set_key(state.tree, item, -shelf.next_use[item])
        state.last[0] = 0
        state.last[1] = event


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Its next use is another."""
    _settle(shelf, state, event)
    set_key(state.tree, item, -shelf.next_use[item])


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The one that is needed last, but for what the event brought in.

    Where the event alone fills the cache, those of its misses stay that are needed soonest.
    """
    _settle(shelf, state, event)
    victim = take_lowest(state.tree, shelf, NO_EVENT)
    if victim != -1:
        return victim
    latest = item
    for i in range(state.last[0]):
        fresh = state.fresh[i]
        if shelf.resident[fresh] and shelf.next_use[fresh] > shelf.next_use[latest]:
            latest = fresh
    return latest


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Safe until the event is over."""
    _settle(shelf, state, event)
    set_key(state.tree, item, ABSENT)
    state.fresh[state.last[0]] = item
    state.last[0] += 1
