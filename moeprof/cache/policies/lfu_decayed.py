"""Decayed LFU: a use counts half as much after every 64 steps, resident or not.

The order of sums that all decay alike does not change with time, so the key of an item is the
logarithm of its sum as of step 0, and only a use changes it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook
from moeprof.cache.policies.tree import Tree, new_tree, set_key, take_lowest

HALF_LIFE_STEPS = 64
_RATE = math.log(2) / HALF_LIFE_STEPS  # a step
_SCALE = 2.0**20  # keys are whole numbers


class State(NamedTuple):
    """Keys are log sums."""

    tree: Tree
    log_sum: NDArray[np.float64]  # [items] -inf before the first use


def new_state(setup: Setup) -> State:
    """Nothing was used."""
    return State(new_tree(setup.items), np.full(setup.items, -np.inf))


@hook
def arrive(shelf: Shelf, state: State, item: int) -> None:
    """Add a use of now."""
    old, now = state.log_sum[item], shelf.clock[0] * _RATE
    higher, lower = max(old, now), min(old, now)
    state.log_sum[item] = higher + math.log1p(math.exp(lower - higher))


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """With all its uses."""
    set_key(state.tree, item, int(state.log_sum[item] * _SCALE))


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Add a use of now."""
    arrive(shelf, state, item)
    insert(shelf, state, item, event)


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The lowest sum."""
    return take_lowest(state.tree, shelf, event)
