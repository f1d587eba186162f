"""Fewest visits: how MoE-Infinity's engine chooses who makes room.

Visits are counted from when a request begins, resident or not; of equals the lowest expert id
goes, then the lowest layer. Source: `GPUFetchFunc` in core/parallel/expert_dispatcher.cpp of
github.com/EfficientMoE/MoE-Infinity at d617801, and moe_infinity/entrypoints/big_modeling.py,
which clears the counts for every request.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook, ignore
from moeprof.cache.policies.tree import Tree, new_tree, set_key, take_lowest

_RANK_BITS = 32

arrive = ignore


class State(NamedTuple):
    """Keys are visits, then the place in the engine's scan."""

    tree: Tree
    visits: NDArray[np.int64]  # [items]
    rank: NDArray[np.int64]  # [items] expert x layers + layer


def new_state(setup: Setup) -> State:
    """Nothing was used."""
    layer, expert = np.divmod(np.arange(setup.items), setup.experts)
    return State(
        new_tree(setup.items), np.zeros(setup.items, np.int64), expert * setup.layers + layer
    )


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """One visit more."""
    state.visits[item] += 1
    set_key(state.tree, item, (state.visits[item] << _RANK_BITS) + state.rank[item])


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """One visit more."""
    insert(shelf, state, item, event)


@hook
def renew(shelf: Shelf, state: State) -> None:
    """A new request counts anew."""
    for item in range(len(state.visits)):
        state.visits[item] = 0
        if shelf.resident[item]:
            set_key(state.tree, item, state.rank[item])


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The least visited."""
    return take_lowest(state.tree, shelf, event)
