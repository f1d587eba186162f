"""LRU: the least recently used goes."""

from __future__ import annotations

from moeprof.cache.policies.queues import Queues, new_queues, push, tail, unlink
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook, ignore

arrive = ignore


def new_state(setup: Setup) -> Queues:
    """One queue, newest use at the head."""
    return new_queues(setup.items, 1)


@hook
def hit(shelf: Shelf, state: Queues, item: int, event: int) -> None:
    """To the head."""
    unlink(state, item)
    push(state, len(shelf.resident), item)


@hook
def evict(shelf: Shelf, state: Queues, item: int, event: int) -> int:
    """The oldest; -1 where `event` needs all that are here."""
    victim = tail(state, len(shelf.resident), shelf, event)
    if victim == -1:
        return -1
    unlink(state, victim)
    return victim


@hook
def insert(shelf: Shelf, state: Queues, item: int, event: int) -> None:
    """At the head."""
    push(state, len(shelf.resident), item)
