"""Layered LRU: the least recently used goes, but for the layer at work and the two after it.

Those are needed next; where only they are left, the least recently used of them goes. In a
layer's own cache it is LRU. Source: `lru_score_with_layers` in moe_infinity/memory/
expert_priority_score.py of github.com/EfficientMoE/MoE-Infinity at d617801, which does not wrap
around from the last layer to the first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.layers import Layers, at_work, new_layers
from moeprof.cache.policies.queues import Queues, new_queues, push, tail, unlink
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook, ignore

SPARED_LAYERS = 3

arrive = ignore


class State(NamedTuple):
    """A queue a layer, newest use at the head."""

    queues: Queues
    layers: Layers
    used: NDArray[np.int64]  # [items] when the item was used last, in uses
    clock: NDArray[np.int64]  # [1]


def new_state(setup: Setup) -> State:
    """Nobody is resident."""
    return State(
        new_queues(setup.items, setup.layers),
        new_layers(setup),
        np.zeros(setup.items, np.int64),
        np.zeros(1, np.int64),
    )


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """At the head of its layer."""
    state.clock[0] += 1
    state.used[item] = state.clock[0]
    push(state.queues, len(shelf.resident) + state.layers.of[item], item)


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """To the head of its layer."""
    unlink(state.queues, item)
    insert(shelf, state, item, event)


@hook
def _oldest(shelf: Shelf, state: State, first: int, stop: int, event: int, best: int) -> int:
    """The least recently used of `best` and the items of layers first to stop."""
    for layer in range(first, stop):
        item = tail(state.queues, len(shelf.resident) + layer, shelf, event)
        if item >= 0 and (best < 0 or state.used[item] < state.used[best]):
            best = item
    return best


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The oldest of the layers that are not spared, else of those."""
    now, layers = at_work(state.layers, shelf), state.layers.shape[0]
    spared = min(now + SPARED_LAYERS, layers)
    victim = _oldest(shelf, state, 0, now, event, -1)
    victim = _oldest(shelf, state, spared, layers, event, victim)
    if victim < 0:
        victim = _oldest(shelf, state, now, spared, event, -1)
    if victim >= 0:
        unlink(state.queues, victim)
    return victim
