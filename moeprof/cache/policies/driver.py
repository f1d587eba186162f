"""The one loop of replay. It is compiled once for each policy, whose hooks it calls by name."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from types import FunctionType, ModuleType
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numba import njit
from numpy.typing import NDArray

from moeprof.cache.policies.shelf import NEVER, NO_EVENT, Shelf, drop, hook, put


class Tally(NamedTuple):
    """What a replay counted, of the events from `first` on."""

    accesses: NDArray[np.int64]  # [layers, steps] distinct experts of every event, or [layers, 0]
    misses: NDArray[np.int64]  # the same shape
    totals: NDArray[np.int64]  # [layers, 3] accesses, misses, and experts loaded into the cache
    foreign: NDArray[np.int64]  # [layers] ids that name no expert
    first: NDArray[np.int64]  # [1] the step from which on is counted
    missed: NDArray[np.uint16]  # [layers, most] experts that missed, in order; or [layers, 0]
    noted: NDArray[np.int64]  # [layers] how many of them


class Rules(NamedTuple):
    """What a contract changes in the loop."""

    sequential: bool  # each member is looked up and served in turn, and nothing is pinned
    by_last_use: bool  # members come in order of last use in the event, not of first
    evict_after: bool  # all misses come in, then others go until the capacity holds again


# The hooks of a policy, which `compiled` binds. `evict` names who makes room, or the newcomer
# itself, which then is not admitted, or -1 where the event needs all that are here.
hit: Any = None  # (shelf, state, item, event)
arrive: Any = None  # (shelf, state, item): a miss, before there is room for it
evict: Any = None  # (shelf, state, item, event) -> item
insert: Any = None  # (shelf, state, item, event)


FORESIGHT = False  # whether the policy is told when an item is needed next


def gather(
    experts: NDArray[np.unsignedinteger],
    recorded: NDArray[np.bool_],
    future: NDArray[np.int32],
    rows: tuple[int, int, int],
    layer: int,
    shelf: Shelf,
    event: int,
    members: NDArray[np.int64],
) -> tuple[int, int]:
    """The distinct items of the event in range(*rows) of one layer, in order of their first.

    Returns how many, and how many ids name no expert: those are passed over, since compiled code
    would write outside of the arrays and not complain. Rows that count down give the order of last
    use, backwards.
    """
    layers, _, k = experts.shape
    size = len(shelf.resident) // layers
    base = layer * size
    count = foreign = 0
    for row in range(rows[0], rows[1], rows[2]):
        for place in range(k if recorded[layer, row] else 0):
            slot = place if rows[2] > 0 else k - 1 - place
            expert = experts[layer, row, slot]
            if expert >= size:
                foreign += 1
                continue
            item = base + expert
            if shelf.last_event[item] != event:
                shelf.last_event[item] = event
                members[count] = item
                count += 1
                if FORESIGHT:
                    after = future[layer, row, slot]
                    shelf.next_use[item] = NEVER if after < 0 else after * layers + layer
    return count, foreign


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


def admit_all(
    members: NDArray[np.int64], count: int, event: int, shelf: Shelf, state: Any
) -> tuple[int, int]:
    """As `serve_event`, but room is made once all misses came in; the members of an event stay
    where they alone exceed the capacity, until the next event makes room.
    """
    missing = 0
    for i in range(count):
        item = members[i]
        if shelf.resident[item]:
            hit(shelf, state, item, event)
        else:
            missing += 1
            arrive(shelf, state, item)
            put(shelf, item)
            insert(shelf, state, item, event)
    while shelf.free[0] < 0:
        victim = evict(shelf, state, -1, event)
        if victim == -1:
            break
        drop(shelf, victim)
    return missing, missing


def serve_event(
    members: NDArray[np.int64], count: int, event: int, sequential: bool, shelf: Shelf, state: Any
) -> tuple[int, int]:
    """Look up and serve the first `count` of `members`. Returns misses, and how many came in.

    Policies with foresight see all hits of an event before its misses, so that what is needed
    again late may go at once.
    """
    missing = loaded = 0
    if not sequential:
        for i in range(count):
            if not shelf.resident[members[i]]:
                if FORESIGHT:
                    members[missing] = members[i]
                missing += 1
            elif FORESIGHT:
                hit(shelf, state, members[i], event)
        if FORESIGHT:
            count = missing
    for i in range(count):
        item = members[i]
        if shelf.resident[item]:
            hit(shelf, state, item, event)
        else:
            missing += sequential
            loaded += serve(shelf, state, item, NO_EVENT if sequential else event)
    return missing, loaded


def note_missing(
    members: NDArray[np.int64], count: int, layer: int, shelf: Shelf, tally: Tally
) -> None:
    """Keep which of an event's members are not resident before it."""
    base = layer * (len(shelf.resident) // tally.missed.shape[0])
    for i in range(count):
        if not shelf.resident[members[i]]:
            tally.missed[layer, tally.noted[layer]] = members[i] - base
            tally.noted[layer] += 1


def replay(
    experts: NDArray[np.unsignedinteger],
    recorded: NDArray[np.bool_],
    future: NDArray[np.int32],
    starts: NDArray[np.int64],
    first_step: int,
    rules: Rules,
    shelf: Shelf,
    state: Any,
    tally: Tally,
) -> None:
    """Replay whole steps: experts [layers, rows, k], recorded [layers, rows]; step i is rows
    starts[i] to starts[i + 1]. The layers share the cache and come in order within a step.

    `future` is the step that names the expert of a place next, -1 for none, of experts' shape; it
    has no rows where the policy has no foresight.
    """
    layers = experts.shape[0]
    members = np.empty(len(shelf.resident) // layers, np.int64)
    for index in range(starts.shape[0] - 1):
        step = first_step + index
        for layer in range(layers):
            event = step * layers + layer
            shelf.clock[0], shelf.clock[1] = step, event
            rows = (starts[index], starts[index + 1], 1)
            if rules.by_last_use:
                rows = (starts[index + 1] - 1, starts[index] - 1, -1)
            count, foreign = gather(experts, recorded, future, rows, layer, shelf, event, members)
            if rules.by_last_use:
                members[:count] = members[:count][::-1].copy()
            if tally.missed.shape[1] > 0:
                note_missing(members, count, layer, shelf, tally)
            if rules.evict_after:
                missing, loaded = admit_all(members, count, event, shelf, state)
            else:
                missing, loaded = serve_event(members, count, event, rules.sequential, shelf, state)
            tally.foreign[layer] += foreign
            if step >= tally.first[0]:
                tally.totals[layer, 0] += count
                tally.totals[layer, 1] += missing
                tally.totals[layer, 2] += loaded
            if tally.misses.shape[1] > 0:
                tally.accesses[layer, step] = count
                tally.misses[layer, step] = missing


@cache
def compiled(policy: ModuleType) -> Any:
    """`replay` with the hooks of `policy` in place, so that the compiler can inline them.

    Numba binds globals when it compiles and finds a cached binary by the name and the file of a
    function: a copy of the code under another name is another function to it. It does not see that
    a hook changed in another file, so the name carries a digest of these files.
    """
    names: dict[str, Any] = {
        name: getattr(policy, name) for name in ("hit", "arrive", "evict", "insert")
    }
    names["FORESIGHT"] = getattr(policy, "FORESIGHT", False)
    for part in (gather, serve, admit_all, serve_event, note_missing):
        names[part.__name__] = _copy(part, policy, names)
    return _copy(replay, policy, names)


def _copy(function: Any, policy: ModuleType, names: dict[str, Any]) -> Any:
    copy = FunctionType(function.__code__, {**globals(), **names}, function.__name__)
    name = policy.__name__.rpartition(".")[2]
    copy.__qualname__ = f"{function.__name__}_{name}_{policies_digest():08x}"
    copy.__module__ = __name__
    if function is not replay:
        return hook(copy)
    return njit(cache=True, nogil=True)(copy)


@cache
def policies_digest() -> int:
    """Of the source of all policies."""
    folder = files("moeprof.cache.policies")
    sources = sorted(
        (entry.name, entry.read_bytes()) for entry in folder.iterdir() if entry.name.endswith(".py")
    )
    return crc32(b"".join(source for _, source in sources))
