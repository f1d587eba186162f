"""Activation-matrix priority: what the running requests use least, in layers far ahead, goes.

The priority of a resident is d x m x v. m is its share of the tokens that its layer routed since
the running requests began; v its share of the hits that residents had since they came; d falls
with depth, 1 - layer / layers, for layers that the step has yet to reach and is 1 for the others.
Each is made to sum to 1 and 1e-6 is added. Source: `priority_score` in moe_infinity/memory/
expert_priority_score.py of github.com/EfficientMoE/MoE-Infinity at d617801 (arXiv 2401.14361), as
it treats its first stack of layers. Every miss scans the residents.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.layers import Layers, at_work, new_layers
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook, pinned

COUNTS_TOKENS = True
_LEAST = 1e-6


class State(NamedTuple):
    """The matrix, and hits of residents."""

    layers: Layers
    tokens: NDArray[np.float64]  # [items] tokens of the running requests that used it
    routed: NDArray[np.float64]  # [layers] sums of `tokens`
    hits: NDArray[np.float64]  # [items] since it came
    total: NDArray[np.float64]  # [1] sum of `hits`


def new_state(setup: Setup) -> State:
    """Nothing was used."""
    return State(
        new_layers(setup),
        np.zeros(setup.items),
        np.zeros(setup.layers),
        np.zeros(setup.items),
        np.zeros(1),
    )


@hook
def renew(shelf: Shelf, state: State) -> None:
    """Other requests, another matrix."""
    state.tokens[:] = 0.0
    state.routed[:] = 0.0


@hook
def arrive(shelf: Shelf, state: State, item: int) -> None:
    """Count the tokens."""
    state.tokens[item] += shelf.weight[item]
    state.routed[state.layers.of[item]] += shelf.weight[item]


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Count the tokens and the hit."""
    arrive(shelf, state, item)
    state.hits[item] += 1.0
    state.total[0] += 1.0


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Without hits."""
    state.hits[item] = 0.0


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The lowest priority; of equals the lowest id."""
    layers, experts = state.layers.shape[0], state.layers.shape[1]
    now = at_work(state.layers, shelf)
    depths = now + 1.0
    for layer in range(now + 1, layers):
        depths += 1.0 - layer / layers
    victim, lowest = -1, np.inf
    for other in range(len(state.tokens)):
        if not shelf.resident[other] or pinned(shelf, other, event):
            continue
        layer = state.layers.of[other]
        depth = 1.0 if layer <= now else 1.0 - layer / layers
        share = 1.0 / experts
        if state.routed[layer] > 0.0:
            share = state.tokens[other] / state.routed[layer]
        seen = 1.0 / (layers * experts)
        if state.total[0] > 0.0:
            seen = state.hits[other] / state.total[0]
        priority = (
            (depth / (depths * experts) + _LEAST) * (share / layers + _LEAST) * (seen + _LEAST)
        )
        if priority < lowest:
            victim, lowest = other, priority
    if victim >= 0:
        state.total[0] -= state.hits[victim]
    return victim
