"""The ways to serve an event, a function each, of which `driver.compiled` takes one into the loop.

Each returns accesses, misses, experts loaded into the cache, and ids that name no expert.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.shelf import NEVER, NO_EVENT, Shelf, drop, put

FIRST_USE, LAST_USE, BY_ID = 0, 1, 2  # the order in which members of an event are looked up


class Source(NamedTuple):
    """Routed ids of consecutive steps."""

    experts: NDArray[np.unsignedinteger]  # [layers, rows, k]
    recorded: NDArray[np.bool_]  # [layers, rows]
    future: NDArray[np.int32]  # [layers, rows, k] next step that names it, -1: none; or no rows
    gates: NDArray[np.float32]  # [layers, rows, k] gate weights, or no rows


class Rules(NamedTuple):
    """What a contract states as a number."""

    order: int
    inserts: int  # misses of an event that may come in; 0: all
    sequential: bool  # members are looked up and served one at a time, and nothing is pinned


# The hooks of a policy, which `compiled` binds. `evict` names who makes room, or the newcomer
# itself, which then is not admitted, or -1 where the event needs all that are here.
hit: Any = None  # (shelf, state, item, event)
arrive: Any = None  # (shelf, state, item): a miss, before there is room for it
evict: Any = None  # (shelf, state, item, event) -> item
insert: Any = None  # (shelf, state, item, event)


FORESIGHT = False  # whether the policy is told when an item is needed next
COUNTS_TOKENS = False  # whether it is told how many tokens of the event want an item
READS_GATES = False  # whether it is told what gate weights they give it
HITS_FIRST = False  # whether it sees all hits of an event first; those with foresight do, so that
# what is needed again late may go at once


def gather(
    source: Source,
    layer: int,
    start: int,
    stop: int,
    stamp: int,
    order: int,
    shelf: Shelf,
    members: NDArray[np.int64],
) -> tuple[int, int]:
    """The distinct items of rows start to stop of one layer, stamped, in `order`.

    Returns how many, and how many ids name no expert: those are passed over, since compiled code
    would write outside of the arrays and not complain.
    """
    layers, _, k = source.experts.shape
    size = len(shelf.resident) // layers
    base = layer * size
    count = foreign = 0
    first, last, way = (stop - 1, start - 1, -1) if order == LAST_USE else (start, stop, 1)
    for row in range(first, last, way):
        for place in range(k if source.recorded[layer, row] else 0):
            slot = place if way > 0 else k - 1 - place
            expert = source.experts[layer, row, slot]
            if expert >= size:
                foreign += 1
                continue
            item = base + expert
            if shelf.last_event[item] != stamp:
                shelf.last_event[item] = stamp
                members[count] = item
                count += 1
                if COUNTS_TOKENS or READS_GATES:
                    shelf.weight[item] = 0.0
                if FORESIGHT:
                    after = source.future[layer, row, slot]
                    shelf.next_use[item] = NEVER if after < 0 else after * layers + layer
            if COUNTS_TOKENS:
                shelf.weight[item] += 1.0
            if READS_GATES:
                shelf.weight[item] += source.gates[layer, row, slot]
    if order != FIRST_USE:
        arrange(members, count, order)
    return count, foreign


def arrange(members: NDArray[np.int64], count: int, order: int) -> None:
    """Turn what was gathered backwards, or sort it."""
    if order == LAST_USE:
        for i in range(count // 2):
            members[i], members[count - 1 - i] = members[count - 1 - i], members[i]
        return
    for i in range(1, count):
        item, j = members[i], i
        while j > 0 and members[j - 1] > item:
            members[j] = members[j - 1]
            j -= 1
        members[j] = item


def serve(shelf: Shelf, state: Any, item: int, event: int) -> int:
    """Bring in a missing item as the policy will have it. Returns 1 where it was admitted.

    Where the event needs all that are here, the policy chooses among those; what exceeds the
    whole cache passes through.
    """
    arrive(shelf, state, item)
    if shelf.size[item] > shelf.capacity[0]:
        return 0
    while shelf.free[0] < shelf.size[item]:
        victim = evict(shelf, state, item, event)
        if victim < 0:
            victim = evict(shelf, state, item, NO_EVENT)
        if victim < 0 or victim == item:
            return 0
        drop(shelf, victim)
    put(shelf, item)
    insert(shelf, state, item, event)
    return 1


def count_missing(
    members: NDArray[np.int64], count: int, event: int, shelf: Shelf, state: Any
) -> int:
    """How many of the members are not there; where hits come first, these are served and taken
    out of `members`.
    """
    missing = 0
    for i in range(count):
        if not shelf.resident[members[i]]:
            if HITS_FIRST:
                members[missing] = members[i]
            missing += 1
        elif HITS_FIRST:
            hit(shelf, state, members[i], event)
    return missing


def serve_members(
    members: NDArray[np.int64], count: int, event: int, rules: Rules, shelf: Shelf, state: Any
) -> tuple[int, int]:
    """Look all up against the state before, then serve. Returns misses, and how many came in.

    Of the misses, the last `rules.inserts` may come in; the first, where members are served one
    at a time.
    """
    missing = loaded = 0
    left, pins, most = count, NO_EVENT, rules.inserts if rules.inserts > 0 else count
    if not rules.sequential:
        missing = count_missing(members, count, event, shelf, state)
        left, pins = missing if HITS_FIRST else count, event
    passing = missing - most
    for i in range(left):
        item = members[i]
        if shelf.resident[item]:
            hit(shelf, state, item, event)
            continue
        missing += rules.sequential
        if passing > 0 or loaded == most:
            passing -= 1
            arrive(shelf, state, item)
        else:
            loaded += serve(shelf, state, item, pins)
    return missing, loaded


PARTS = (arrange, gather, serve, count_missing, serve_members)  # in the order they are bound


def at_once(
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
    """All members are looked up, then all misses served; none makes room for another, unless the
    rules are sequential.
    """
    count, foreign = gather(source, layer, start, stop, event, rules.order, shelf, members)
    missing, loaded = serve_members(members, count, event, rules, shelf, state)
    return count, missing, loaded, foreign
