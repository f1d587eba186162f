"""Several recordings of one model as one: the ranks of a launch, or runs made one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moeprof.errors import InputError, TraceError
from moeprof.result import Result
from moeprof.trace.counts import copy_counts
from moeprof.trace.folder import drafted
from moeprof.trace.reader import Trace, open_trace
from moeprof.trace.rows import TokenRows
from moeprof.trace.schema import RequestNames
from moeprof.trace.writer import TraceWriter

UNREADABLE = "unreadable in a merged trace"

_OPTIONAL = ("weights", "token_ids", "margins", "next_layer")
_HELD_ROWS = 4096  # requests or samples that wait to be written together


@dataclass(frozen=True)
class MergeResult(Result):
    """One trace made of several."""

    path: str
    sources: list[str]
    tokens: int
    requests: int
    dropped: dict[str, int]
    complete: bool  # every source was
    problems: list[str] = field(default_factory=list)  # what of which source could not be read


def merge_traces(
    sources: Sequence[str | Path], path: str | Path, *, force: bool = False
) -> MergeResult:
    """Write the rows of all `sources`, one source after the other, as the trace `path`.

    Steps go on counting where the source before ended, requests are numbered on, times count from
    the earliest clock base, telemetry is in order of time, and counts of tokens that are missing
    add up; of different sampling seeds the first is noted. Of a source that was cut off what can
    be read is taken; the merged trace is then not complete either. Rows stream through, the
    sources stay as they are, and `path` appears whole or not at all.

    Raises InputError on no sources, on traces that differ in model or in what was recorded, if
    `path` exists and `force` is false, or if it is one of the sources.
    """
    traces = [open_trace(source) for source in sources]
    if not traces:
        raise InputError("merging takes at least one trace")
    path = Path(path)
    _refuse_overlap(path.resolve(), [Path(source).resolve() for source in sources])
    _refuse_differences(traces)
    with drafted(path, force) as draft, _writer(draft, traces) as writer:
        end = _End(None, 0)
        for trace in traces:
            end = _append(writer, trace, end)
        _put_telemetry(writer, traces)
        writer.close(complete=all(trace.manifest.complete for trace in traces))
    return MergeResult(
        path=str(path),
        sources=[str(source) for source in sources],
        tokens=writer.manifest.tokens,
        requests=sum(len(trace.requests) for trace in traces),
        dropped=writer.manifest.dropped,
        complete=writer.manifest.complete,
        problems=[f"{trace}: {problem}" for trace in traces for problem in _problems(trace)],
    )


def _problems(trace: Trace) -> list[str]:
    cut = [] if trace.manifest.complete else ["was cut off, what of it can be read is merged"]
    return [*cut, *trace.problems]


class _End(NamedTuple):
    """Where the source before ended in the merged trace."""

    # the last; of counts the window after the last; None before the first source, which keeps its
    step: int | None
    requests: int  # how many numbers are taken


def _refuse_overlap(path: Path, sources: Sequence[Path]) -> None:
    """InputError if to write `path` would change a source."""
    for source in sources:
        if path == source or path in source.parents or source in path.parents:
            raise InputError(
                f"{path} lies in {source}, or is it, and what is merged stays as it is"
            )


def _refuse_differences(traces: Sequence[Trace]) -> None:
    """InputError that names the first thing in which a trace must not differ and does."""
    wanted = _identity(traces[0])
    for trace in traces[1:]:
        found = _identity(trace)
        for name in wanted | found:
            if wanted.get(name) != found.get(name):
                raise InputError(
                    f"{trace} cannot be merged with {traces[0]}: "
                    f"{name} is {found.get(name)}, not {wanted.get(name)}"
                )


def _identity(trace: Trace) -> dict[str, Any]:
    """What traces must have in common to be one."""
    manifest = trace.manifest
    return {
        **{f"its model's {name}": value for name, value in manifest.model.items()},
        "its list of layers": manifest.layers,
        "top_k": manifest.top_k,
        **{f"'{name} recorded'": getattr(manifest, name) for name in _OPTIONAL},
        "its bytes of experts": manifest.expert_bytes,
        "its sampling rate": manifest.sampling.rate if manifest.sampling else None,
        "'holds counts only'": trace.counts_only,
        "its steps a window": manifest.aggregate_steps,
    }


def _writer(path: Path, traces: Sequence[Trace]) -> TraceWriter:
    """An empty trace at `path` that takes the rows of all `traces`."""
    manifests = [trace.manifest for trace in traces]
    first = manifests[0]
    names = {manifest.request_names for manifest in manifests}
    ordered = {manifest.rank_ordered for manifest in manifests}
    return TraceWriter(
        path,
        traces[0].model,
        layers=first.layers,
        top_k=first.top_k,
        engine=_distinct(manifest.engine for manifest in manifests),
        engine_version=_distinct(manifest.engine_version for manifest in manifests),
        weights=first.weights,
        token_ids=first.token_ids,
        margins=first.margins,
        next_layer=first.next_layer,
        rank_ordered=ordered.pop() if len(ordered) == 1 else None,
        request_names=max(names, key=list(RequestNames).index),  # what tells most
        clock_base=min(manifest.clock_base for manifest in manifests),
        sampling=first.sampling.model_dump() if first.sampling else None,
        expert_bytes=first.expert_bytes,
        aggregate_steps=first.aggregate_steps,
    )


def _distinct(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(name for name in names if name))


def _append(writer: TraceWriter, trace: Trace, end: _End) -> _End:
    """Write rows, requests and counts of `trace` behind `end`; where it ends itself."""
    if trace.manifest.aggregate_steps is not None:
        return _append_windows(writer, trace, end)
    step, shift, highest = end.step, 0, -1
    for number, rows in enumerate(trace.rows()):
        if number == 0 and end.step is not None:
            shift = end.step + 1 - int(rows.step[0])
        highest = max(highest, int(rows.request.max()))
        shifted = _shifted(trace, rows, shift, end.requests, highest)
        try:
            writer.write(shifted)
        except TraceError as error:
            raise TraceError(f"{trace}: {error}") from None
        step = int(shifted.step[-1])
    _put_requests(writer, trace, end.requests)
    _add_counts(writer, trace)
    highest = max(highest, max((request.index for request in trace.requests), default=-1))
    return _End(step, end.requests + highest + 1)


def _append_windows(writer: TraceWriter, trace: Trace, end: _End) -> _End:
    """Write the counts of `trace` behind those there are, its windows numbered on."""
    windows = trace.count_rows["window"].to_numpy()
    shift = 0 if end.step is None or not len(windows) else end.step - int(windows.min())
    step = copy_counts(trace, writer, shift)
    _add_counts(writer, trace)
    return _End(max(step, end.step or 0), 0)


def _shifted(trace: Trace, rows: TokenRows, step: int, request: int, highest: int) -> TokenRows:
    """`rows` as they are numbered in the merged trace; a request below 0 is none, and stays."""
    if request + highest > np.iinfo(np.int32).max:
        raise InputError(f"{trace}: request {highest:,} is too large a number to merge")
    known = np.where(rows.request < 0, rows.request, rows.request + np.int32(request))
    return replace(rows, step=rows.step + step, request=known)


def _put_requests(writer: TraceWriter, trace: Trace, first: int) -> None:
    later = trace.manifest.clock_base - writer.clock_base
    for number, request in enumerate(trace.requests, 1):
        arrival = None if request.arrival_s is None else request.arrival_s + later
        writer.put_request(replace(request, index=request.index + first, arrival_s=arrival))
        if number % _HELD_ROWS == 0:
            writer.flush()


def _add_counts(writer: TraceWriter, trace: Trace) -> None:
    """What the trace says is missing, and what of it cannot be read now."""
    manifest = trace.manifest
    for reason, tokens in manifest.dropped.items():
        writer.drop(tokens, reason)
    if manifest.tokens > trace.tokens:
        writer.drop(manifest.tokens - trace.tokens, UNREADABLE)
    writer.leave_out(manifest.tokens_sampled_out, manifest.requests_sampled_out)
    writer.manifest.rotated_tokens += manifest.rotated_tokens


def _put_telemetry(writer: TraceWriter, traces: Sequence[Trace]) -> None:
    samples = [
        replace(sample, time_s=sample.time_s + (trace.manifest.clock_base - writer.clock_base))
        for trace in traces
        for sample in trace.telemetry
    ]
    for number, sample in enumerate(sorted(samples, key=lambda sample: sample.time_s), 1):
        writer.put_telemetry(sample)
        if number % _HELD_ROWS == 0:
            writer.flush()
