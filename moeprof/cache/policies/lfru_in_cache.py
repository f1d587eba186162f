"""LFRU as vLLM PR 37190 has it: uses since an item came, age in accesses of the layer's cache.

Of equal rates the one that came first goes. Source: github.com/vllm-project/vllm pull request
37190, vllm/model_executor/layers/fused_moe/expert_weight_provider.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.kinetic import Kinetic, new_kinetic, set_resident, take_lowest_rate
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook, ignore

arrive = ignore


class State(NamedTuple):
    """Rates and their clock."""

    tree: Kinetic
    clock: NDArray[np.int64]  # [1] hits and admissions so far


def new_state(setup: Setup) -> State:
    """Nothing was used."""
    return State(new_kinetic(setup.items), np.zeros(1, np.int64))


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """One use more, now."""
    state.clock[0] += 1
    state.tree.uses[item] += 1
    state.tree.last[item] = state.clock[0]
    set_resident(state.tree, item, True, state.clock[0])


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Used once, now."""
    state.clock[0] += 1
    state.tree.uses[item] = 1
    state.tree.last[item] = state.tree.order[item] = state.clock[0]
    set_resident(state.tree, item, True, state.clock[0])


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The lowest rate."""
    return take_lowest_rate(state.tree, shelf, event, state.clock[0])
