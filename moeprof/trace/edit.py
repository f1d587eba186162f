"""A part of a trace, a trace without what identifies people, a trace in the current schema."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.trace.counts import copy_counts, write_counts
from moeprof.trace.folder import drafted
from moeprof.trace.reader import Trace, open_trace
from moeprof.trace.rows import Phase, Request, TokenRows
from moeprof.trace.schema import RequestNames
from moeprof.trace.writer import TraceWriter

_LAYER_COLUMNS = ("experts", "recorded", "weights", "margins")
_HELD_REQUESTS = 4096  # that wait to be written together


@dataclass(frozen=True)
class EditResult(Result):
    """A trace that was made of another."""

    path: str
    source: str
    tokens: int
    requests: int
    left_out: int  # tokens of the source that are not in it


def slice_trace(
    source: str | Path,
    path: str | Path,
    *,
    requests: Collection[int] | None = None,
    labels: Collection[str] | None = None,
    phase: str = "all",
    steps: tuple[int, int] | None = None,
    layers: Collection[int] | None = None,
    force: bool = False,
) -> EditResult:
    """Write the tokens of `source` that meet every condition as the trace `path`.

    `steps` is the first and the last that stay; `layers` are native indices. Steps, positions and
    requests keep their numbers. The next layer's choices are left out when layers are chosen.
    Raises InputError if nothing is left, or for a layer or label that is not there.
    """
    trace = open_trace(source)
    _refuse_unknown("layer", layers, trace.layers)
    _refuse_unknown("label", labels, trace.labels)
    wanted = _wanted_requests(trace, requests, labels)
    code = Phase.parse(phase)

    def stays(rows: TokenRows) -> NDArray[np.bool_]:
        mask = np.ones(len(rows), bool)
        if wanted is not None:
            mask &= np.isin(rows.request, wanted)
        if code is not None and rows.phase is not None:
            mask &= rows.phase == code
        if steps is not None:
            mask &= (rows.step >= steps[0]) & (rows.step <= steps[1])
        return mask

    kept = tuple(n for n in trace.layers if layers is None or n in layers)
    return _rewrite(trace, Path(path), _Edit(stays, kept), force=force)


def redact_trace(source: str | Path, path: str | Path, *, force: bool = False) -> EditResult:
    """Write `source` without token ids, labels and names of requests as the trace `path`.

    What stays is nearly as telling: expert ids alone reveal most of the text.
    """
    return _rewrite(open_trace(source), Path(path), _Edit(redact=True), force=force)


def migrate_trace(source: str | Path, path: str | Path, *, force: bool = False) -> EditResult:
    """Write `source` in the schema and the batches of this moeprof as the trace `path`."""
    return _rewrite(open_trace(source), Path(path), _Edit(), force=force)


@dataclass(frozen=True)
class _Edit:
    """What becomes of a trace: None keeps everything."""

    stays: Callable[[TokenRows], NDArray[np.bool_]] | None = None
    layers: tuple[int, ...] | None = None
    redact: bool = False


def _refuse_unknown(what: str, wanted: Collection[Any] | None, there: Iterable[Any]) -> None:
    known = set(there)
    for name in wanted or ():
        if name not in known:
            raise InputError(f"{what} '{name}' is not in the trace")


def _wanted_requests(
    trace: Trace, requests: Collection[int] | None, labels: Collection[str] | None
) -> list[int] | None:
    """Indices that meet both conditions; None for all."""
    if requests is None and labels is None:
        return None
    labelled = {r.index for r in trace.requests if labels is None or r.label in labels}
    if labels is None:
        return sorted(set(requests or ()))
    return sorted(labelled if requests is None else labelled & set(requests))


def _rewrite(trace: Trace, path: Path, edit: _Edit, *, force: bool) -> EditResult:
    """Stream the rows of `trace` through `edit`; `path` appears whole or not at all."""
    _refuse_same(trace, path)
    if trace.counts_only:
        return _rewrite_counts(trace, path, edit, force)
    written: set[int] = set()
    with drafted(path, force) as draft, _writer(draft, trace, edit) as writer:
        for rows in trace.rows():
            kept = _kept(rows, trace, edit)
            writer.write(kept)
            written |= set(np.unique(kept.request).tolist())
        if not writer.manifest.tokens and trace.tokens:
            raise InputError(f"{trace}: no token meets these conditions")
        requests = _put_requests(writer, trace, written, edit)
        _put_rest(writer, trace)
        writer.close(complete=trace.manifest.complete)
    tokens = writer.manifest.tokens
    return EditResult(str(path), str(trace), tokens, requests, trace.tokens - tokens)


def _refuse_same(trace: Trace, path: Path) -> None:
    source = trace.path.resolve() if trace.path else None
    target = path.resolve()
    if source is not None and (target == source or source in target.parents):
        raise InputError(f"{path} is the trace itself, which stays as it is")


def _rewrite_counts(trace: Trace, path: Path, edit: _Edit, force: bool) -> EditResult:
    if edit.stays is not None:
        raise InputError(f"{trace}: holds counts only; a slice needs tokens")
    if trace.manifest.aggregate_steps is None:
        with drafted(path, force) as draft:
            write_counts(draft, trace.model, trace.counts)
        return EditResult(str(path), str(trace), 0, 0, 0)
    with drafted(path, force) as draft, _writer(draft, trace, edit) as writer:
        copy_counts(trace, writer)
        _put_rest(writer, trace)
        writer.close(complete=trace.manifest.complete)
    return EditResult(str(path), str(trace), trace.tokens, 0, 0)


def _writer(path: Path, trace: Trace, edit: _Edit) -> TraceWriter:
    """An empty trace that says of itself what `trace` says, as far as that still holds."""
    manifest = trace.manifest
    layers = trace.layers if edit.layers is None else edit.layers
    return TraceWriter(
        path,
        trace.model,
        layers=layers,
        top_k=trace.top_k,
        engine=manifest.engine,
        engine_version=manifest.engine_version,
        weights=manifest.weights,
        token_ids=manifest.token_ids and not edit.redact,
        margins=manifest.margins,
        next_layer=manifest.next_layer and layers == trace.layers,
        rank_ordered=manifest.rank_ordered,
        request_names=RequestNames.NONE if edit.redact else manifest.request_names,
        clock_base=manifest.clock_base,
        sampling=manifest.sampling.model_dump() if manifest.sampling else None,
        expert_bytes={n: size for n, size in manifest.expert_bytes.items() if n in layers},
        aggregate_steps=manifest.aggregate_steps,
    )


def _kept(rows: TokenRows, trace: Trace, edit: _Edit) -> TokenRows:
    """What `edit` leaves of `rows`."""
    if edit.redact:
        rows = replace(rows, token_id=None)
    if edit.layers is not None and edit.layers != trace.layers:
        rows = _with_layers(rows, [trace.layers.index(n) for n in edit.layers])
    if edit.stays is None:
        return rows
    mask = edit.stays(rows)
    parts = {f.name: getattr(rows, f.name) for f in fields(rows)}
    kept: dict[str, Any] = {n: None if a is None else a[mask] for n, a in parts.items()}
    return TokenRows(**kept)


def _with_layers(rows: TokenRows, places: list[int]) -> TokenRows:
    """`rows` with the layers at `places` alone."""
    columns = {name: getattr(rows, name) for name in _LAYER_COLUMNS}
    chosen = {name: None if a is None else a[:, places] for name, a in columns.items()}
    alone = replace(rows, next_experts=None, next_weights=None)
    parts = {f.name: getattr(alone, f.name) for f in fields(alone)}
    return TokenRows(**(parts | chosen))


def _put_requests(writer: TraceWriter, trace: Trace, written: set[int], edit: _Edit) -> int:
    """The requests that still have rows; how many there are."""
    kept = [r for r in trace.requests if edit.stays is None or r.index in written]
    for number, request in enumerate(kept, 1):
        writer.put_request(_redacted(request) if edit.redact else request)
        if number % _HELD_REQUESTS == 0:
            writer.flush()
    return len(kept)


def _redacted(request: Request) -> Request:
    return replace(request, label=None, name=None)


def _put_rest(writer: TraceWriter, trace: Trace) -> None:
    """Telemetry, and what the trace says was never recorded."""
    for sample in trace.telemetry:
        writer.put_telemetry(sample)
    manifest = trace.manifest
    for reason, tokens in manifest.dropped.items():
        writer.drop(tokens, reason)
    writer.leave_out(manifest.tokens_sampled_out, manifest.requests_sampled_out)
    writer.manifest.rotated_tokens += manifest.rotated_tokens
