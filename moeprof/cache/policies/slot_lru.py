"""LRU over slots: all experts of an event are as recent as each other, and the lowest slot goes.

FreeToken's rule. A prompt streams whole layers through the first 2 x experts slots, which it
leaves empty; where the pool has fewer, it passes through all of them and leaves the last layer
in the first slots. Source: github.com/FlashML-org/FreeToken at 0ab982f,
python/freetoken/moe/offload_cache.py and offload_kernels.py, and `lru_ensure` of
github.com/FlashML-org/flashlib, flashlib/kernels/slot_cache.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, drop, hook, ignore, put
from moeprof.cache.policies.tree import ABSENT, Tree, new_tree, set_key

arrive = ignore
HITS_FIRST = True


class State(NamedTuple):
    """Keys are the events that used a slot last; of equals the tree names the lowest slot."""

    tree: Tree  # over slots
    slot: NDArray[np.int32]  # [items] where it stands
    owner: NDArray[np.int32]  # [slots] who stands there, -1: nobody
    lowest: NDArray[np.int64]  # [1] no slot below this is empty
    shape: NDArray[np.int64]  # [2] layers, experts of each


def new_state(setup: Setup) -> State:
    """All slots are empty. There are as many as items, where capacity is counted in bytes."""
    return State(
        new_tree(setup.items),
        np.zeros(setup.items, np.int32),
        np.full(setup.items, -1, np.int32),
        np.zeros(1, np.int64),
        np.array([setup.layers, setup.experts], np.int64),
    )


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """As recent as the event."""
    set_key(state.tree, state.slot[item], shelf.clock[1])


@hook
def _leave(state: State, slot: int) -> None:
    """The slot is empty."""
    set_key(state.tree, slot, ABSENT)
    state.owner[slot] = -1
    state.lowest[0] = min(state.lowest[0], slot)


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """Who stands in the slot used longest ago, unless this event used it."""
    slot = state.tree.winner[1]
    if state.tree.key[1] >= shelf.clock[1]:
        return -1
    victim = int(state.owner[slot])
    _leave(state, slot)
    return victim


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Into the lowest empty slot."""
    slot = state.lowest[0]
    while state.owner[slot] >= 0:
        slot += 1
    state.lowest[0] = slot + 1
    state.owner[slot] = item
    state.slot[item] = slot
    set_key(state.tree, slot, shelf.clock[1])


@hook
def prefill(shelf: Shelf, state: State) -> None:
    """The first slots were lent to the prompt."""
    layers, experts = state.shape[0], state.shape[1]
    overlaps = shelf.capacity[0] >= 2 * experts * shelf.size[0]
    for slot in range(min(2 * experts, len(state.owner)) if overlaps else len(state.owner)):
        if state.owner[slot] >= 0:
            drop(shelf, state.owner[slot])
            _leave(state, slot)
    if not overlaps:
        shelf.clock[1] = shelf.clock[0] * layers + layers - 1
        for item in range((layers - 1) * experts, layers * experts):
            if shelf.free[0] >= shelf.size[item]:
                put(shelf, item)
                insert(shelf, state, item, shelf.clock[1])
