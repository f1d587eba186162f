"""The loop of a cache that is also filled ahead of need, over one link that takes its time.

It is compiled once for each policy, whose hooks it calls by name, as `policies.driver` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from moeprof.cache.policies.driver import policies_digest
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import NO_EVENT, Shelf, drop, new_shelf, put

# What runs within the loop allocates nothing: it goes without Numba's reference counts, which are
# atomic additions and would take most of the time.
inner = njit(nogil=True, _nrt=False)
view = njit(nogil=True, inline="always")  # such a function may not return a part of an array

# What is counted, by layer.
ACCESSES, MISSES, LATE, ISSUED, USEFUL, WASTED, DROPPED, POLLUTING, KINDS = range(9)


class Transit(NamedTuple):
    """Experts on their way, and what became of those that came.

    Times are in intervals: one is what a layer computes for.
    """

    arrival: NDArray[np.float64]  # [layers, experts] when the last prefetch of it is through
    queued: NDArray[np.uint8]  # [layers, experts] 1 where it waits for the link
    fresh: NDArray[np.uint8]  # [layers, experts] 1 where it was prefetched and not used yet
    pushed_by: NDArray[np.int64]  # [layers, experts] whose prefetch evicted it, -1 for none
    victim: NDArray[np.int64]  # [layers, experts] who went for its last prefetch, -1 for none
    queue: NDArray[np.int64]  # [length, 2] a ring of events and experts that are waited for
    bounds: NDArray[np.int64]  # [2] head and length of the ring
    named: NDArray[np.int64]  # [lookahead, width] experts named for event e in row e % lookahead
    held: NDArray[np.int64]  # [caches] residents that no prefetch may evict now
    clock: NDArray[np.float64]  # [2] now, and when the link is free
    transfer: NDArray[np.float64]  # [layers] intervals that one expert takes


def new_transit(
    layers: int, experts: int, caches: int, lookahead: int, width: int, transfer: NDArray[Any]
) -> Transit:
    """Nothing is on its way."""
    shape = (layers, experts)
    return Transit(
        np.zeros(shape),
        np.zeros(shape, np.uint8),
        np.zeros(shape, np.uint8),
        np.full(shape, -1, np.int64),
        np.full(shape, -1, np.int64),
        np.zeros((lookahead * width + 1, 2), np.int64),
        np.zeros(2, np.int64),
        np.full((lookahead, width), -1, np.int64),
        np.zeros(caches, np.int64),
        np.zeros(2),
        transfer,
    )


class Tally(NamedTuple):
    """What was counted of the events from `first` on."""

    counts: NDArray[np.int64]  # [layers, KINDS]
    stall: NDArray[np.float64]  # [1] intervals that layers waited for experts
    misses: NDArray[np.int64]  # [events] of every event, or [0]
    stalls: NDArray[np.float64]  # [events] or [0]


@njit(cache=True, nogil=True)
def distinct(
    experts: NDArray[np.unsignedinteger],
    recorded: NDArray[np.bool_],
    starts: NDArray[np.int64],
    first_step: int,
    stamp: NDArray[np.int64],
    place: NDArray[np.int64],
    foreign: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.int32]]:
    """Bounds [events + 1], experts and tokens of the events of whole steps, as `Demand` has them.

    experts [layers, rows, k], recorded [layers, rows]; stamp and place [layers, experts] are room
    to work in, stamp being -1 at first. Adds to foreign [layers] ids that name no expert.
    """
    layers, rows, k = experts.shape
    steps, size = starts.shape[0] - 1, stamp.shape[1]
    bounds = np.zeros(steps * layers + 1, np.int64)
    found = np.empty(layers * rows * k, np.uint16)
    tokens = np.zeros(layers * rows * k, np.int32)
    count = 0
    for index in range(steps):
        for layer in range(layers):
            for row in range(starts[index], starts[index + 1]):
                for slot in range(k if recorded[layer, row] else 0):
                    expert = np.int64(experts[layer, row, slot])
                    if expert >= size:
                        foreign[layer] += 1
                        continue
                    if stamp[layer, expert] != first_step + index:
                        stamp[layer, expert] = first_step + index
                        place[layer, expert] = count
                        found[count] = expert
                        count += 1
                    tokens[place[layer, expert]] += 1
            bounds[index * layers + layer + 1] = count
    return bounds, found[:count].copy(), tokens[:count].copy()


# What `compiled` binds: the hooks of a policy, and one cache of several with the same shape.
hit: Any = None
arrive: Any = None
evict: Any = None
insert: Any = None
shelf_of: Any = None  # (shelves, cache) -> shelf
state_of: Any = None  # (states, cache) -> state


def bring_in(shelf: Shelf, state: Any, item: int, event: int) -> tuple[int, int]:
    """As `driver.serve` where every item takes one slot. Returns 1 where it was admitted, and what
    had to go, -1 for none.
    """
    arrive(shelf, state, item)
    victim = -1
    if shelf.free[0] < 1:
        victim = evict(shelf, state, item, event)
        if victim < 0:
            victim = evict(shelf, state, item, NO_EVENT)
        if victim < 0 or victim == item:
            return 0, -1
        drop(shelf, victim)
    put(shelf, item)
    insert(shelf, state, item, event)
    return 1, victim


@inner
def excuse(layer: int, expert: int, transit: Transit) -> None:
    """A prefetched expert is used: who went for it was not evicted in vain."""
    size = transit.fresh.shape[1]
    transit.fresh[layer, expert] = 0
    victim = transit.victim[layer, expert]
    if victim >= 0 and transit.pushed_by[victim // size, victim % size] == layer * size + expert:
        transit.pushed_by[victim // size, victim % size] = -1


@inner
def look_up(
    members: NDArray[np.uint16],
    layer: int,
    base: int,
    shelf: Shelf,
    transit: Transit,
    counts: NDArray[np.int64],
) -> tuple[int, float]:
    """Count what is there and what is not. Returns experts that the link must bring, and when the
    one that it is bringing is through, 0 where the event does not need it.
    """
    missing, under_way = 0, 0.0
    for expert in members:
        counts[ACCESSES] += 1
        if not shelf.resident[base + expert]:
            continue
        if transit.arrival[layer, expert] > transit.clock[0]:
            under_way = transit.arrival[layer, expert]
            counts[MISSES] += 1
            counts[LATE] += 1
        else:
            counts[USEFUL] += transit.fresh[layer, expert]
        if transit.fresh[layer, expert]:
            excuse(layer, np.int64(expert), transit)
    for expert in members:
        if not shelf.resident[base + expert]:
            missing += 1
            counts[MISSES] += 1
            counts[LATE] += transit.queued[layer, expert]
            counts[POLLUTING] += transit.pushed_by[layer, expert] >= 0
            transit.queued[layer, expert] = 0
            transit.pushed_by[layer, expert] = -1
    return missing, under_way


def serve_members(
    members: NDArray[np.uint16],
    base: int,
    event: int,
    shelf: Shelf,
    state: Any,
    fresh: NDArray[np.uint8],
    counts: NDArray[np.int64],
) -> None:
    """Touch what is there and bring in what is not, as contract atomic has it.

    `fresh` is flat, by item of the cache; `counts` [layers of the cache, KINDS].
    """
    for expert in members:
        shelf.last_event[base + expert] = event
    for expert in members:
        item = base + expert
        if shelf.resident[item]:
            hit(shelf, state, item, event)
            continue
        _, victim = bring_in(shelf, state, item, event)
        if victim >= 0 and fresh[victim]:
            fresh[victim] = 0
            counts[victim // (len(fresh) // len(counts)), WASTED] += 1


@inner
def settle(missing: int, under_way: float, layer: int, transit: Transit) -> float:
    """Let the link bring `missing` experts before all that waits. Returns when all are there.

    What it is bringing is finished first.
    """
    ready = max(float(transit.clock[0]), under_way)
    if missing:
        ready = float(max(transit.clock[0], transit.clock[1]) + missing * transit.transfer[layer])
        transit.clock[1] = ready
    return ready


@inner
def let_go(event: int, layers: int, transit: Transit, counts: NDArray[np.int64]) -> None:
    """What waits for `event` or an earlier one waits no more: it came with it, or in vain."""
    length = transit.queue.shape[0]
    while transit.bounds[1] > 0 and transit.queue[transit.bounds[0], 0] <= event:
        target, expert = transit.queue[transit.bounds[0]]
        layer = target % layers
        counts[layer, DROPPED] += transit.queued[layer, expert]
        transit.queued[layer, expert] = 0
        transit.bounds[0] = (transit.bounds[0] + 1) % length
        transit.bounds[1] -= 1


@inner
def ask_for(
    named: NDArray[np.int32],
    target: int,
    layer: int,
    resident: NDArray[np.uint8],
    transit: Transit,
    counts: NDArray[np.int64],
) -> None:
    """Put what is named for event `target` of `layer` behind all that waits, unless it is there."""
    length = transit.queue.shape[0]
    row = target % transit.named.shape[0]
    for rank in range(named.shape[0]):
        expert = named[rank]
        transit.named[row, rank] = expert
        if expert >= 0 and not resident[expert] and not transit.queued[layer, expert]:
            place = (transit.bounds[0] + transit.bounds[1]) % length
            transit.queue[place, 0] = target
            transit.queue[place, 1] = expert
            transit.bounds[1] += 1
            transit.queued[layer, expert] = 1
            counts[ISSUED] += 1


@inner
def protect(
    members: NDArray[np.uint16], event: int, layers: int, shelves: Shelf, transit: Transit
) -> None:
    """Mark what no prefetch may evict during `event`: what runs, and what is named for later."""
    caches = shelves.resident.shape[0]
    size = shelves.resident.shape[1] * caches // layers
    lookahead = transit.named.shape[0]
    for target in range(event, event + lookahead + 1):
        transit.held[target % layers % caches] = 0
    for target in range(event, event + lookahead + 1):
        layer = target % layers
        cache = layer % caches
        base = (layer - cache) * size
        width = len(members) if target == event else transit.named.shape[1]
        for i in range(width):
            expert = (
                np.int64(members[i]) if target == event else transit.named[target % lookahead, i]
            )
            if expert >= 0 and shelves.last_event[cache, base + expert] != mark_of(event):
                shelves.last_event[cache, base + expert] = mark_of(event)
                transit.held[cache] += shelves.resident[cache, base + expert]


@inner
def mark_of(event: int) -> int:
    """The event that prefetches are served under, which is no real one: below NO_EVENT."""
    return -3 - event


def start_prefetches(
    members: NDArray[np.uint16],
    event: int,
    ready: float,
    layers: int,
    shelves: Shelf,
    states: Any,
    transit: Transit,
    counts: NDArray[np.int64],
) -> None:
    """Let the link begin what waits, in order, from `ready` on until the next event."""
    until = ready + 1.0
    if transit.bounds[1] == 0 or transit.clock[1] >= until:
        return
    protect(members, event, layers, shelves, transit)
    caches = shelves.resident.shape[0]
    size = shelves.resident.shape[1] * caches // layers
    length = transit.queue.shape[0]
    while transit.bounds[1] > 0 and transit.clock[1] < until:
        target, expert = transit.queue[transit.bounds[0]]
        transit.bounds[0] = (transit.bounds[0] + 1) % length
        transit.bounds[1] -= 1
        layer = target % layers
        cache = layer % caches
        item = (layer - cache) * size + expert
        transit.queued[layer, expert] = 0
        shelf = shelf_of(shelves, cache)
        came, victim = 0, -1
        if shelf.free[0] > 0 or transit.held[cache] < shelf.capacity[0]:
            came, victim = bring_in(shelf, state_of(states, cache), item, mark_of(event))
        if not came:
            counts[layer, DROPPED] += 1
            continue
        transit.held[cache] += 1
        transit.clock[1] = max(transit.clock[1], ready) + transit.transfer[layer]
        transit.arrival[layer, expert] = transit.clock[1]
        transit.fresh[layer, expert] = 1
        transit.pushed_by[layer, expert] = -1
        transit.victim[layer, expert] = -1
        if victim >= 0:
            gone = victim // size + (layer if caches > 1 else 0)
            counts[gone, WASTED] += transit.fresh[gone, victim % size]
            transit.fresh[gone, victim % size] = 0
            transit.pushed_by[gone, victim % size] = layer * size + expert
            transit.victim[layer, expert] = gone * size + victim % size


def run_events(
    starts: NDArray[np.int64],
    experts: NDArray[np.uint16],
    named: NDArray[np.int32],
    first_event: int,
    first_counted: int,
    shelves: Shelf,
    states: Any,
    transit: Transit,
    tally: Tally,
    scratch: NDArray[np.int64],
) -> None:
    """What `replay` does; `scratch` takes the counts of events that are not counted."""
    layers, size = transit.arrival.shape
    caches = shelves.resident.shape[0]
    lookahead = transit.named.shape[0]
    for index in range(named.shape[0]):
        event = first_event + index
        counted = event >= first_counted
        counts = tally.counts if counted else scratch
        step, layer = event // layers, event % layers
        cache = layer % caches
        base = (layer - cache) * size
        shelf, state = shelf_of(shelves, cache), state_of(states, cache)
        number = step if caches > 1 else event
        shelf.clock[0], shelf.clock[1] = step, number
        members = experts[starts[event] : starts[event + 1]]
        missing, under_way = look_up(members, layer, base, shelf, transit, counts[layer])
        fresh, of_cache = transit.fresh.reshape(layers * size), counts
        if caches > 1:
            fresh, of_cache = transit.fresh[layer], counts[layer : layer + 1]
        serve_members(members, base, number, shelf, state, fresh, of_cache)
        if tally.misses.shape[0]:
            tally.misses[event] = missing + (under_way > 0)
        if not counted:
            continue
        ready = settle(missing, under_way, layer, transit)
        tally.stall[0] += ready - transit.clock[0]
        if tally.stalls.shape[0]:
            tally.stalls[event] = ready - transit.clock[0]
        let_go(event, layers, transit, counts)
        target = event + lookahead
        if target < starts.shape[0] - 1:
            after = target % layers
            other = after % caches
            first = (after - other) * size
            resident = shelves.resident[other, first : first + size]
            ask_for(named[index], target, after, resident, transit, counts[after])
        start_prefetches(members, event, ready, layers, shelves, states, transit, counts)
        transit.clock[0] = ready + 1.0


def replay(
    starts: NDArray[np.int64],
    experts: NDArray[np.uint16],
    named: NDArray[np.int32],
    first_event: int,
    first_counted: int,
    shelves: Shelf,
    states: Any,
    transit: Transit,
    tally: Tally,
) -> None:
    """Replay the events from `first_event` on for which `named` [events, width] says what to fetch
    ahead, -1 for nothing; starts and experts are the whole `Demand`.

    There are as many caches as layers or one for all. Before event `first_counted` nothing is
    fetched ahead, no time passes, and nothing is counted.
    """
    scratch = np.zeros_like(tally.counts)
    run_events(
        starts, experts, named, first_event, first_counted, shelves, states, transit, tally, scratch
    )


@cache
def compiled(policy: ModuleType) -> Any:
    """`replay` with the hooks of `policy` in place, found on disk as `driver.compiled` explains.

    Only the hooks are inlined, so that each is compiled once or twice and not at every call.
    """
    names: dict[str, Any] = {
        name: getattr(policy, name) for name in ("hit", "arrive", "evict", "insert")
    }
    names["shelf_of"] = _picker(new_shelf(np.ones(4, np.int64), 2))
    names["state_of"] = _picker(policy.new_state(Setup(1, 4, 2)))
    for part in (bring_in, serve_members, start_prefetches, run_events):
        names[part.__name__] = inner(_copy(part, policy, names))
    return njit(cache=True, nogil=True)(_copy(replay, policy, names))


def _copy(function: Any, policy: ModuleType, names: dict[str, Any]) -> FunctionType:
    copy = FunctionType(function.__code__, {**globals(), **names}, function.__name__)
    name = policy.__name__.rpartition(".")[2]
    copy.__qualname__ = f"{function.__name__}_{name}_{policies_digest():08x}"
    copy.__module__ = __name__
    return copy


def stacked(states: Sequence[Any]) -> Any:
    """Arrays, or named tuples of arrays, of one shape as one with a first axis more."""
    if isinstance(states[0], np.ndarray):
        return np.stack(states)
    return type(states[0])(*(stacked(parts) for parts in zip(*states, strict=True)))


def _picker(example: Any) -> Any:
    """Compiled (stack, i) -> the i-th of what `stacked` put together, all shaped as `example`."""
    if isinstance(example, np.ndarray):
        return view(lambda stack, i: stack[i])
    kind, fields = type(example), _fields_picker(list(example))
    return view(lambda stack, i: kind(*fields(stack, i)))


def _fields_picker(examples: list[Any]) -> Any:
    """Compiled (stack, i) -> the i-th of each of the first fields of a stacked named tuple."""
    last = len(examples) - 1
    pick = _picker(examples[last])
    if last == 0:
        return view(lambda stack, i: (pick(stack[0], i),))
    before = _fields_picker(examples[:last])
    return view(lambda stack, i: (*before(stack, i), pick(stack[last], i)))
