"""The ways of single engines to serve an event, as `serving` has the common one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.serving import (
    Rules,
    Source,
    arrive,
    evict,
    gather,
    hit,
    insert,
    serve_members,
)
from moeprof.cache.policies.shelf import NO_EVENT, Shelf, drop, put

MOST_TOKENS = 4  # of a step that llama.cpp looks up
_NO_STAMP = -3  # stamps of parts of an event count down from here


def evict_after(
    source: Source,
    layer: int,
    start: int,
    stop: int,
    event: int,
    rules: Rules,
    shelf: Shelf,
    state: Any,
    members: NDArray[np.int64],
) -> tuple[int, int, int, int]:
    """All misses come in, then others make room; where the members alone exceed the capacity,
    they stay until the next event makes room.
    """
    count, foreign = gather(source, layer, start, stop, event, rules.order, shelf, members)
    missing = 0
    for i in range(count):
        missing += not shelf.resident[members[i]]
    passing = missing - rules.inserts if rules.inserts > 0 else 0
    loaded = missing - max(passing, 0)
    for i in range(count):
        item = members[i]
        if shelf.resident[item]:
            hit(shelf, state, item, event)
            continue
        arrive(shelf, state, item)
        if passing > 0:
            passing -= 1
        else:
            put(shelf, item)
            insert(shelf, state, item, event)
    while shelf.free[0] < 0:
        victim = evict(shelf, state, -1, event)
        if victim == -1:
            break
        drop(shelf, victim)
    return count, missing, loaded, foreign


def land(shelf: Shelf, state: Any) -> int:
    """What was sent for between the last two steps is there. Returns how many."""
    flying = shelf.queued[1]
    for i in range(flying):
        shelf.resident[shelf.flying[i]] = 1
        insert(shelf, state, shelf.flying[i], NO_EVENT)
    shelf.queued[1] = 0
    return int(flying)


def send_for(rules: Rules, shelf: Shelf, state: Any) -> None:
    """Of what waits, the last that was missed comes first; who makes room goes at once."""
    waiting = shelf.queued[0]
    shelf.queued[0] = 0
    most = min(waiting, rules.inserts) if rules.inserts > 0 else waiting
    for i in range(waiting - 1, waiting - 1 - most, -1):
        item = shelf.waiting[i]
        if shelf.resident[item]:
            continue
        while shelf.free[0] < shelf.size[item]:
            victim = evict(shelf, state, item, NO_EVENT)
            if victim < 0 or victim == item:
                return
            drop(shelf, victim)
        shelf.free[0] -= shelf.size[item]
        shelf.flying[shelf.queued[1]] = item
        shelf.queued[1] += 1


def note(shelf: Shelf, item: int) -> None:
    """A miss waits, once."""
    for i in range(shelf.queued[0]):
        if shelf.waiting[i] == item:
            return
    shelf.waiting[shelf.queued[0]] = item
    shelf.queued[0] += 1


def deferred(
    source: Source,
    layer: int,
    start: int,
    stop: int,
    event: int,
    rules: Rules,
    shelf: Shelf,
    state: Any,
    members: NDArray[np.int64],
) -> tuple[int, int, int, int]:
    """Misses wait, and come in between steps: what a step missed makes its victims go before the
    next step, and is there from the step after that. Larger steps pass by.
    """
    loaded = land(shelf, state)
    send_for(rules, shelf, state)
    accesses = missing = foreign = 0
    for row in range(start, stop if stop - start <= MOST_TOKENS else start):
        stamp = _NO_STAMP - (event * MOST_TOKENS + row - start)
        count, unknown = gather(source, layer, row, row + 1, stamp, rules.order, shelf, members)
        accesses += count
        foreign += unknown
        for i in range(count):
            if shelf.resident[members[i]]:
                hit(shelf, state, members[i], event)
            else:
                missing += 1
                arrive(shelf, state, members[i])
                note(shelf, members[i])
    return accesses, missing, loaded, foreign


def unstamped(source: Source, layer: int, row: int, stamp: int, shelf: Shelf) -> int:
    """What the experts of a row take that are not stamped; now they are."""
    size = len(shelf.resident) // source.experts.shape[0]
    taken = 0
    for place in range(source.experts.shape[2] if source.recorded[layer, row] else 0):
        expert = source.experts[layer, row, place]
        item = layer * size + expert
        if expert < size and shelf.last_event[item] != stamp:
            shelf.last_event[item] = stamp
            taken += shelf.size[item]
    return taken


def fitting_rows(source: Source, layer: int, start: int, stop: int, shelf: Shelf) -> int:
    """The row up to which the experts of rows from start on fit together; one row at least."""
    shelf.queued[0] += 1
    stamp = _NO_STAMP - shelf.queued[0]
    taken = 0
    for row in range(start, stop):
        taken += unstamped(source, layer, row, stamp, shelf)
        if taken > shelf.capacity[0] and row > start:
            return row
    return stop


def in_parts(
    source: Source,
    layer: int,
    start: int,
    stop: int,
    event: int,
    rules: Rules,
    shelf: Shelf,
    state: Any,
    members: NDArray[np.int64],
) -> tuple[int, int, int, int]:
    """As at once; an event larger than the cache is served in runs of tokens that fit, each an
    event of its own, so that an expert counts once in every run that wants it.
    """
    accesses = missing = loaded = foreign = 0
    begin = start
    while begin < stop:
        end = fitting_rows(source, layer, begin, stop, shelf)
        shelf.queued[0] += 1
        stamp = _NO_STAMP - shelf.queued[0]
        count, unknown = gather(source, layer, begin, end, stamp, rules.order, shelf, members)
        missed, came = serve_members(members, count, stamp, rules, shelf, state)
        accesses += count
        missing += missed
        loaded += came
        foreign += unknown
        begin = end
    return accesses, missing, loaded, foreign


def dispatched(
    source: Source,
    layer: int,
    start: int,
    stop: int,
    event: int,
    rules: Rules,
    shelf: Shelf,
    state: Any,
    members: NDArray[np.int64],
) -> tuple[int, int, int, int]:
    """A miss that finds no room makes one other go. Hits take of the free space as misses do, so
    that the cache stops growing once as many experts were used as fit.
    """
    count, foreign = gather(source, layer, start, stop, event, rules.order, shelf, members)
    missing = loaded = 0
    for i in range(count):
        item = members[i]
        if shelf.resident[item]:
            hit(shelf, state, item, event)
            shelf.free[0] -= shelf.size[item]
            continue
        missing += 1
        arrive(shelf, state, item)
        room = shelf.free[0] >= shelf.size[item]
        if not room:
            victim = evict(shelf, state, item, event)
            room = victim >= 0 and victim != item
            if room:
                drop(shelf, victim)
        if room:
            put(shelf, item)
            insert(shelf, state, item, event)
            loaded += 1
    return count, missing, loaded, foreign


PARTS = (land, send_for, note, unstamped, fitting_rows)  # in the order they are bound
