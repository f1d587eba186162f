"""r*-admission: a miss comes in only if its uses, decayed, exceed the victim's by a margin.

Every use counts half after 16 steps, resident or not; the lowest sum goes, and only for a newcomer
whose sum is larger by more than 1, the uses that have to come for a copy to pay. Where a slot is
free everything is admitted. Source: `_sim_rstar` in mosl/cachesim.py of
github.com/harshithkantamneni/moe-speed-of-light at 009be859, with its defaults.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook
from moeprof.cache.policies.tree import Tree, new_tree, set_key, take_lowest

HALF_LIFE_STEPS = 16
MARGIN_USES = 1.0
_RATE = math.log(2) / HALF_LIFE_STEPS  # a step
_SCALE = 2.0**36  # keys are whole numbers


class State(NamedTuple):
    """Keys are logarithms of sums as of step 0, whose order does not change with time."""

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
    """The lowest sum, or the newcomer where it does not exceed that by the margin."""
    victim = take_lowest(state.tree, shelf, event)
    if victim < 0:
        return item
    now = shelf.clock[0] * _RATE
    gain = math.exp(state.log_sum[item] - now) - math.exp(state.log_sum[victim] - now)
    if gain > MARGIN_USES + 1e-9:  # sums that are equal but for rounding are equal
        return victim
    insert(shelf, state, victim, event)
    return item
