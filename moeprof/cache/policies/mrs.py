"""MRS, minus recent score: the lowest running average of gate weights goes.

S <- alpha x TopP(s) + (1 - alpha) x S at every step, s the gate weights of the event, 0 for whom
they do not name (HybriMoE, Zhong et al. 2025, arXiv 2504.05897, section IV-D). There TopP keeps
twice the experts that are activated; a trace holds the weights of the activated alone, so here
it keeps these. Weights of several tokens add up. The order of averages that all fade alike does
not change with time, so the key is the logarithm as of step 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook
from moeprof.cache.policies.tree import Tree, new_tree, set_key, take_lowest

READS_GATES = True
ALPHA = 0.75  # the paper leaves it open; the default of an implementation in llama.cpp
_RATE = -math.log(1 - ALPHA)  # a step
_SCALE = 2.0**32  # keys are whole numbers
_LEAST = 2.0**-24  # the smallest weight that half precision tells from none


class State(NamedTuple):
    """Keys are logarithms of averages."""

    tree: Tree
    log_score: NDArray[np.float64]  # [items] -inf before the first use


def new_state(setup: Setup) -> State:
    """Nothing was used."""
    return State(new_tree(setup.items), np.full(setup.items, -np.inf))


@hook
def arrive(shelf: Shelf, state: State, item: int) -> None:
    """Add the weight of now."""
    old = state.log_score[item]
    now = shelf.clock[0] * _RATE + math.log(max(shelf.weight[item], _LEAST))
    higher, lower = max(old, now), min(old, now)
    state.log_score[item] = higher + math.log1p(math.exp(lower - higher))


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """With its average."""
    set_key(state.tree, item, int(state.log_score[item] * _SCALE))


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Add the weight of now."""
    arrive(shelf, state, item)
    insert(shelf, state, item, event)


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The lowest average."""
    return take_lowest(state.tree, shelf, event)
