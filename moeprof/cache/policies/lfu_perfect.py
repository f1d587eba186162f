"""Perfect LFU: uses are counted also while an item is not resident; ties go to the older use."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook
from moeprof.cache.policies.tree import Tree, new_tree, set_key, take_lowest

_CLOCK_BITS = 40


class State(NamedTuple):
    """Keys are uses, then the time of the last one."""

    tree: Tree
    uses: NDArray[np.int64]  # [items]
    clock: NDArray[np.int64]  # [1] accesses so far


def new_state(setup: Setup) -> State:
    """Nothing was used."""
    return State(new_tree(setup.items), np.zeros(setup.items, np.int64), np.zeros(1, np.int64))


@hook
def arrive(shelf: Shelf, state: State, item: int) -> None:
    """Count the use."""
    state.uses[item] += 1
    state.clock[0] += 1


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """With all its uses."""
    set_key(state.tree, item, (state.uses[item] << _CLOCK_BITS) + state.clock[0])


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Count the use."""
    arrive(shelf, state, item)
    insert(shelf, state, item, event)


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The least often used."""
    return take_lowest(state.tree, shelf, event)
