"""Layer + LFU: of the layer at work, the least often used goes; only where it has none, another's.

Uses are counted also while an item is not resident; of equals the least recently used goes.
Source: policy `layerlfu` of scripts/route-replay.py of github.com/Helldez/BigMoeOnEdge, whose
layers have a share of the budget each (`--scope layer` here); in one pool that the layers have
not shared out, this is how a layer stays with its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.layers import Layers, at_work, new_layers
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook, pinned
from moeprof.cache.policies.tree import Tree, new_tree, set_key, take_lowest

_CLOCK_BITS = 40


class State(NamedTuple):
    """Keys are uses, then the time of the last one."""

    tree: Tree
    layers: Layers
    key: NDArray[np.int64]  # [items]
    clock: NDArray[np.int64]  # [1] accesses so far


def new_state(setup: Setup) -> State:
    """Nothing was used."""
    return State(
        new_tree(setup.items),
        new_layers(setup),
        np.zeros(setup.items, np.int64),
        np.zeros(1, np.int64),
    )


@hook
def arrive(shelf: Shelf, state: State, item: int) -> None:
    """Count the use."""
    state.clock[0] += 1
    uses = (state.key[item] >> _CLOCK_BITS) + 1
    state.key[item] = (uses << _CLOCK_BITS) + state.clock[0]


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """With all its uses."""
    set_key(state.tree, item, state.key[item])


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Count the use."""
    arrive(shelf, state, item)
    insert(shelf, state, item, event)


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The least often used of the layer at work; the scan is over the experts of one layer."""
    size = state.layers.shape[1]
    first = at_work(state.layers, shelf) * size
    victim = -1
    for other in range(first, first + size):
        lower = victim < 0 or state.key[other] < state.key[victim]
        if lower and shelf.resident[other] and not pinned(shelf, other, event):
            victim = other
    if victim < 0:
        return take_lowest(state.tree, shelf, event)
    set_key(state.tree, victim, np.iinfo(np.int64).max)
    return victim
