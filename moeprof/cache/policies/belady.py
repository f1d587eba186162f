"""Belady: of all residents, the one that is needed last goes; what comes is always admitted.

The hindsight optimum of a cache that must admit (Belady 1966, doi:10.1147/sj.52.0078).
"""

from __future__ import annotations

from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook, ignore
from moeprof.cache.policies.tree import Tree, new_tree, set_key, take_lowest

arrive = ignore
FORESIGHT = True


def new_state(setup: Setup) -> Tree:
    """Keys are next uses, negated."""
    return new_tree(setup.items)


@hook
def hit(shelf: Shelf, state: Tree, item: int, event: int) -> None:
    """Its next use is another."""
    set_key(state, item, -shelf.next_use[item])


@hook
def evict(shelf: Shelf, state: Tree, item: int, event: int) -> int:
    """The one that is needed last."""
    return take_lowest(state, shelf, event)


@hook
def insert(shelf: Shelf, state: Tree, item: int, event: int) -> None:
    """With its next use."""
    set_key(state, item, -shelf.next_use[item])
