"""LFU in the cache: the least often used since it came goes, of equals the least recently used.

Buckets of equal use in a list by use (Shah, Mitra and Matani 2010): every step takes constant
time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.queues import Queues, new_queues, push, tail, unlink
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook, ignore

arrive = ignore


class State(NamedTuple):
    """Bucket b is queue b of `queue`; buckets stand in a circular list by use, node 0 its ends."""

    queue: Queues
    bucket: NDArray[np.int32]  # [items] where the item stands
    uses: NDArray[np.int64]  # [buckets]; of node 0, 0
    more: NDArray[np.int32]  # [buckets] the bucket of the next higher use
    less: NDArray[np.int32]  # [buckets]
    spare: NDArray[np.int32]  # [buckets] buckets that are empty, a stack
    spares: NDArray[np.int64]  # [1] its height


def new_state(setup: Setup) -> State:
    """No bucket is used yet."""
    buckets = setup.items + 2
    return State(
        new_queues(setup.items, buckets),
        np.zeros(setup.items, np.int32),
        np.zeros(buckets, np.int64),
        np.zeros(buckets, np.int32),
        np.zeros(buckets, np.int32),
        np.arange(buckets, dtype=np.int32)[::-1].copy(),
        np.array([buckets - 1], np.int64),
    )


@hook
def _place(items: int, state: State, item: int, uses: int, below: int) -> None:
    """Put `item` into the bucket of `uses`, which follows bucket `below`; make it if need be."""
    bucket = state.more[below]
    if bucket == 0 or state.uses[bucket] != uses:
        state.spares[0] -= 1
        fresh = state.spare[state.spares[0]]
        state.uses[fresh] = uses
        state.more[fresh], state.less[fresh] = bucket, below
        state.more[below] = state.less[bucket] = fresh
        bucket = fresh
    state.bucket[item] = bucket
    push(state.queue, items + bucket, item)


@hook
def _remove_if_empty(items: int, state: State, bucket: int) -> None:
    """A bucket without items goes back to the spares."""
    if state.queue.older[items + bucket] == items + bucket:
        less, more = state.less[bucket], state.more[bucket]
        state.more[less], state.less[more] = more, less
        state.spare[state.spares[0]] = bucket
        state.spares[0] += 1


@hook
def hit(shelf: Shelf, state: State, item: int, event: int) -> None:
    """One bucket up."""
    items = len(shelf.resident)
    bucket = state.bucket[item]
    unlink(state.queue, item)
    _place(items, state, item, state.uses[bucket] + 1, bucket)
    _remove_if_empty(items, state, bucket)


@hook
def evict(shelf: Shelf, state: State, item: int, event: int) -> int:
    """The oldest of the lowest bucket that holds one that `event` does not need."""
    items = len(shelf.resident)
    bucket = state.more[0]
    while bucket:
        victim = tail(state.queue, items + bucket, shelf, event)
        if victim >= 0:
            unlink(state.queue, victim)
            _remove_if_empty(items, state, bucket)
            return victim
        bucket = state.more[bucket]
    return -1


@hook
def insert(shelf: Shelf, state: State, item: int, event: int) -> None:
    """Used once."""
    _place(len(shelf.resident), state, item, 1, 0)
