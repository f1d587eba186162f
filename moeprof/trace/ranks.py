"""A recording that several ranks wrote, each a trace of its own, opened as one.

`T/ranks/dpDD-ppPP-tpTT` is the trace of one rank. Data-parallel ranks hold other requests,
pipeline stages other layers, and tensor-parallel ranks other rows of the same steps; those that
see the same rows write nothing. They run in lockstep: a step has one number on all of them.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from moeprof.errors import InputError, TraceError
from moeprof.trace.reader import Trace, open_folder
from moeprof.trace.schema import RANKS

_APART_SECONDS = 60  # that ranks of one recording begin within
_DIMENSIONS = ("dp", "pp", "tp")


class Rank(NamedTuple):
    """Where a rank stands: data-parallel, pipeline and tensor-parallel."""

    dp: int = 0
    pp: int = 0
    tp: int = 0

    def __str__(self) -> str:
        return f"dp{self.dp:02}-pp{self.pp:02}-tp{self.tp:02}"

    @classmethod
    def parse(cls, name: str) -> Rank | None:
        """The rank whose folder is called `name`, None if that is no rank's."""
        named = re.fullmatch(r"dp(\d{1,5})-pp(\d{1,5})-tp(\d{1,5})", name, re.ASCII)
        return None if named is None else cls(*map(int, named.groups()))


def find_ranks(folder: Path) -> dict[Rank, Path]:
    """The traces of ranks below `folder`, in order.

    Raises TraceError for a link, for a folder that is named otherwise and for one rank twice: what
    is joined must be what was recorded together.
    """
    root = folder / RANKS
    if root.is_symlink():
        raise TraceError(f"{root}: is a link, ranks are joined from where they were written")
    found: dict[Rank, Path] = {}
    for path in sorted(root.iterdir()):
        if path.is_symlink():
            raise TraceError(f"{path}: is a link, ranks are joined from where they were written")
        if not path.is_dir():
            continue
        rank = Rank.parse(path.name)
        if rank is None:
            raise TraceError(f"{str(path)!r}: is no rank, they are named as {Rank()}")
        if rank in found:
            raise TraceError(f"{path}: is the same rank as {found[rank].name}")
        found[rank] = path
    if not found:
        raise TraceError(f"{root}: holds no ranks")
    return dict(sorted(found.items()))


def open_ranks(folder: Path) -> Trace:
    """The traces of all ranks in `folder` as one, in a temporary folder that goes with it.

    What is missing, cut off or damaged of a rank is in `problems`. Raises TraceError if a rank is
    no trace, InputError where they cannot be of one recording.
    """
    from moeprof.trace.joining import join_ranks  # the reader imports this file

    traces = {rank: open_folder(path) for rank, path in find_ranks(folder).items()}
    _refuse_differences(traces)
    missing = _missing(traces)
    place = TemporaryDirectory(prefix="moeprof-")
    try:
        path = Path(place.name) / "joined.moetrace"
        join_ranks(traces, path, complete=not missing)
        joined = open_folder(path)
    except BaseException:
        place.cleanup()
        raise
    joined.foreign = folder
    joined.ranks = tuple(map(str, traces))
    joined.missing_ranks = tuple(map(str, missing))
    joined.problems = (*_problems(traces, missing), *joined.problems)
    weakref.finalize(joined, place.cleanup)
    return joined


def _refuse_differences(traces: dict[Rank, Trace]) -> None:
    """InputError that names the first thing in which ranks must not differ and do."""
    first, *others = traces
    wanted = _identity(traces[first])
    for rank in others:
        for name, value in _identity(traces[rank]).items():
            if value != wanted[name]:
                raise InputError(
                    f"{traces[rank]}: {name} is {value}, not {wanted[name]} as in {first}: these "
                    "ranks are not of one recording"
                )
    for dp in {rank.dp for rank in traces}:
        _refuse_shared_layers({r: t for r, t in traces.items() if r.dp == dp})


def _identity(trace: Trace) -> dict[str, object]:
    manifest = trace.manifest
    optional = ("weights", "token_ids", "margins", "next_layer", "aggregate_steps", "ranks")
    return {
        **{f"its model's {name}": value for name, value in manifest.model.items()},
        "its number of experts": manifest.experts,
        "top_k": manifest.top_k,
        **{f"'{name}'": getattr(manifest, name) for name in optional},
    }


def _refuse_shared_layers(traces: dict[Rank, Trace]) -> None:
    """InputError if two pipeline stages of one data-parallel rank have a layer."""
    stage_of: dict[int, Rank] = {}
    for rank, trace in traces.items():
        for layer in trace.layers:
            other = stage_of.setdefault(layer, rank)
            if other.pp != rank.pp:
                raise InputError(f"{trace}: layer {layer} was recorded by {other}, too")


def _missing(traces: dict[Rank, Trace]) -> list[Rank]:
    """Ranks that must have written and are not there, as the others say or their numbers do."""
    stated = next(iter(traces.values())).manifest.ranks
    sizes = [
        max(stated.get(name, 0), 1 + max(getattr(rank, name) for rank in traces))  # type: ignore[call-overload]
        for name in _DIMENSIONS
    ]
    return [rank for place in product(*map(range, sizes)) if (rank := Rank(*place)) not in traces]


def _problems(traces: dict[Rank, Trace], missing: Sequence[Rank]) -> Iterator[str]:
    """What is missing of the recording as a whole, and of each rank."""
    for rank in missing:
        yield f"{RANKS}/{rank}: is missing, what it recorded is not in here"
    some = next(iter(traces.values()))
    layers = {layer for trace in traces.values() for layer in trace.layers}
    if left := sorted(set(some.model.moe_layers) - layers):
        yield f"layers {', '.join(map(str, left))}: no rank that is here recorded them"
    began = min(trace.manifest.clock_base for trace in traces.values())
    for rank, trace in traces.items():
        late = trace.manifest.clock_base - began
        if late > _APART_SECONDS:
            yield f"{RANKS}/{rank}: began {late:,.0f} s after others, is it of another recording?"
        if not trace.manifest.complete:
            yield f"{RANKS}/{rank}: was cut off, what of it can be read is joined"
        yield from (f"{RANKS}/{rank}: {problem}" for problem in trace.problems)
