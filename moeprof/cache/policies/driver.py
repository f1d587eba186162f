"""The one loop of replay. It is compiled once for each policy and each way to serve an event.

The policy's hooks and the way to serve are called by name; `compiled` binds them.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from types import FunctionType, ModuleType
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numba import njit
from numpy.typing import NDArray

from moeprof.cache.policies import engine_serving, serving
from moeprof.cache.policies.serving import Rules, Source, gather
from moeprof.cache.policies.shelf import Shelf, hook

PREFILL, FRESH = 1, 2  # bits of a step's kind: holds prompt tokens; none of its requests ran before


class Tally(NamedTuple):
    """What a replay counted, of the events from `first` on."""

    accesses: NDArray[np.int64]  # [layers, steps] distinct experts of every event, or [layers, 0]
    misses: NDArray[np.int64]  # the same shape
    totals: NDArray[np.int64]  # [layers, 3] accesses, misses, and experts loaded into the cache
    foreign: NDArray[np.int64]  # [layers] ids that name no expert
    first: NDArray[np.int64]  # [1] the step from which on is counted
    missed: NDArray[np.uint16]  # [layers, most] experts that missed, in order; or [layers, 0]
    noted: NDArray[np.int64]  # [layers] how many of them


serve_event: Any = None  # a function of `serving`, bound by `compiled`
prefill: Any = None  # (shelf, state): what a prompt does to the cache, which then is not counted
renew: Any = None  # (shelf, state): new requests begin
PROMPTS_PASS, RENEWED = False, False  # whether the policy has these two


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
    source: Source,
    starts: NDArray[np.int64],
    kinds: NDArray[np.uint8],
    first_step: int,
    rules: Rules,
    shelf: Shelf,
    state: Any,
    tally: Tally,
    members: NDArray[np.int64],
) -> None:
    """Replay whole steps: step i is rows starts[i] to starts[i + 1] of `source` and of kind
    kinds[i]. The layers share the cache and come in order within a step.

    members [experts] is room for those of an event.
    """
    layers = source.experts.shape[0]
    for index in range(starts.shape[0] - 1):
        step = first_step + index
        shelf.clock[0] = step
        if RENEWED and kinds[index] & FRESH:
            renew(shelf, state)
        if PROMPTS_PASS and kinds[index] & PREFILL:
            prefill(shelf, state)
            continue
        for layer in range(layers):
            event = step * layers + layer
            shelf.clock[1] = event
            if tally.missed.shape[1] > 0:
                held, _ = gather(
                    source, layer, starts[index], starts[index + 1], -3 - event, rules.order,
                    shelf, members,
                )  # fmt: skip
                note_missing(members, held, layer, shelf, tally)
            count, missing, loaded, foreign = serve_event(
                source, layer, starts[index], starts[index + 1], event, rules, shelf, state, members
            )
            tally.foreign[layer] += foreign
            if step >= tally.first[0]:
                tally.totals[layer, 0] += count
                tally.totals[layer, 1] += missing
                tally.totals[layer, 2] += loaded
            if tally.misses.shape[1] > 0:
                tally.accesses[layer, step] = count
                tally.misses[layer, step] = missing


@cache
def compiled(policy: ModuleType, way: str) -> Any:
    """`replay` with the hooks of `policy`, serving events in the `way` of that name.

    Numba binds globals when it compiles and finds a cached binary by the name and the file of a
    function: a copy of the code under another name is another function to it. It does not see that
    a hook changed in another file, so the name carries a digest of these files.
    """
    names: dict[str, Any] = {
        name: getattr(policy, name) for name in ("hit", "arrive", "evict", "insert")
    }
    for flag in ("FORESIGHT", "COUNTS_TOKENS", "READS_GATES"):
        names[flag] = getattr(policy, flag, False)
    names["HITS_FIRST"] = names["FORESIGHT"] or getattr(policy, "HITS_FIRST", False)
    for flag, name in (("PROMPTS_PASS", "prefill"), ("RENEWED", "renew")):
        names[flag] = hasattr(policy, name)
        names[name] = getattr(policy, name, None)
    tag = f"{policy.__name__.rpartition('.')[2]}_{way}_{policies_digest():08x}"
    serve = getattr(serving, way, None) or getattr(engine_serving, way)
    for part in (*serving.PARTS, *engine_serving.PARTS, serve, note_missing):
        names[part.__name__] = hook(_copy(part, tag, names))
    names["serve_event"] = names[way]
    return njit(cache=True, nogil=True)(_copy(replay, tag, names))


def _copy(function: Any, tag: str, names: dict[str, Any]) -> Any:
    copy = FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__)
    copy.__qualname__ = f"{function.__name__}_{tag}"
    copy.__module__ = function.__module__
    return copy


@cache
def policies_digest() -> int:
    """Of the source of all policies."""
    folder = files("moeprof.cache.policies")
    sources = sorted(
        (entry.name, entry.read_bytes()) for entry in folder.iterdir() if entry.name.endswith(".py")
    )
    return crc32(b"".join(source for _, source in sources))
