"""LFRU: uses divided by the time since the last one; the lowest goes.

As arXiv 2608.07911 (moe-cache-eval) counts: uses also while an item is not resident, age in
events, of equals the lowest id.
"""

from __future__ import annotations

from moeprof.cache.policies.kinetic import Kinetic, new_kinetic, set_resident, take_lowest_rate
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook


def new_state(setup: Setup) -> Kinetic:
    """Nothing was used."""
    return new_kinetic(setup.items)


@hook
def arrive(shelf: Shelf, state: Kinetic, item: int) -> None:
    """Count the use."""
    state.uses[item] += 1
    state.last[item] = shelf.clock[1]


@hook
def insert(shelf: Shelf, state: Kinetic, item: int, event: int) -> None:
    """With all its uses."""
    set_resident(state, item, True, shelf.clock[1])


@hook
def hit(shelf: Shelf, state: Kinetic, item: int, event: int) -> None:
    """Count the use."""
    arrive(shelf, state, item)
    insert(shelf, state, item, event)


@hook
def evict(shelf: Shelf, state: Kinetic, item: int, event: int) -> int:
    """The lowest rate."""
    return take_lowest_rate(state, shelf, event, shelf.clock[1])
