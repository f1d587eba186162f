"""Exports as arrays: NPZ, cache requests, routing replay, load."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from moeprof.trace.columns import concat_rows
from moeprof.trace.formats.block import Findings
from moeprof.trace.reader import Trace
from moeprof.trace.rows import TokenRows
from moeprof.trace.schema import expert_dtype

_ORACLE = np.dtype(
    [("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next", "<i8")]
)  # packed, 24 bytes
NO_SEQUENCE = "request without one row for every position"


def write_npz(trace: Trace, file: IO[bytes], found: Findings) -> int:
    """The plain NPZ that `import` reads, member by member, in bounded memory."""
    manifest = trace.manifest
    whole = not trace.unrecorded
    dtype = expert_dtype(trace.experts_per_layer) if whole else np.dtype(np.int32)
    shape = (trace.tokens, len(trace.layers), trace.top_k)
    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        _member(archive, "experts", shape, dtype, (_ids(rows) for rows in trace.rows()))
        if manifest.weights:
            gates = (rows.weights for rows in trace.rows())
            _member(archive, "weights", shape, np.dtype(np.float16), gates)
        _array(archive, "layers", np.array(trace.layers))
        for name in ("step", "request", "position", "phase"):
            _array(archive, name, getattr(trace, name))
        if manifest.token_ids:
            _array(archive, "token_id", trace.token_id)
        _array(archive, "num_experts", np.array(trace.experts_per_layer))
        _array(archive, "model", np.array(trace.model.name))
        if manifest.rank_ordered is not None:
            _array(archive, "rank_ordered", np.array(manifest.rank_ordered))
        _requests(archive, trace)
    return int(trace.tokens)


def _ids(rows: TokenRows) -> NDArray[Any]:
    if rows.recorded is None:
        return rows.experts
    return np.where(rows.recorded[:, :, None], rows.experts.astype(np.int32), -1)


def _requests(archive: zipfile.ZipFile, trace: Trace) -> None:
    """Labels and prompt lengths by the index of the request, '' and -1 where not known."""
    if not trace.requests or trace.requests[-1].index >= 10 * len(trace.requests) + 1000:
        return
    count = trace.requests[-1].index + 1
    labels, prompts = [""] * count, np.full(count, -1, np.int64)
    for request in trace.requests:
        labels[request.index] = request.label or ""
        prompts[request.index] = -1 if request.prompt_tokens is None else request.prompt_tokens
    _array(archive, "labels", np.array(labels))
    _array(archive, "prompt_tokens", prompts)


def _array(archive: zipfile.ZipFile, name: str, values: NDArray[Any]) -> None:
    _member(archive, name, values.shape, values.dtype, iter([values]))


def _member(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    parts: Iterator[Any],
) -> None:
    """One .npy of the archive, written part by part."""
    entry = zipfile.ZipInfo(f"{name}.npy")  # a fixed date: same trace, same bytes
    with archive.open(entry, "w", force_zip64=True) as member:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(member, header | {"shape": shape})
        for part in parts:
            member.write(np.ascontiguousarray(part.astype(dtype, copy=False)).tobytes())


def write_oracle(trace: Trace, file: IO[bytes], found: Findings) -> int:
    """One access for each (step, layer, distinct expert), in that order.

    The object is layer ordinal x experts + expert, its size 1 slot, the time its step. Eight bytes
    an access are held in memory, for the time of the next access is in each.
    """
    found.note(
        "accesses of one event stand one after the other, by id: a cache simulator looks each up "
        "on its own (the sequential contract)"
    )
    keys = list(_events(trace))
    events = np.concatenate(keys) if keys else np.zeros((0, 2), np.int64)
    accesses = np.empty(len(events), _ORACLE)
    accesses["time"], accesses["object"] = events[:, 0], events[:, 1]
    accesses["size"] = 1
    accesses["next"] = _next_access(events[:, 1])
    file.write(accesses.tobytes())
    return len(accesses)


def _events(trace: Trace) -> Iterator[NDArray[np.int64]]:
    """[accesses, 2] of (step from 0, object), whole steps at a time."""
    held: list[TokenRows] = []
    for rows in trace.rows():
        falls = np.flatnonzero(np.diff(rows.step)) + 1
        boundary = int(falls[-1]) if len(falls) else 0
        if held and rows.step[0] != held[-1].step[-1]:
            yield _distinct(concat_rows(held), trace)
            held = []
        if boundary:
            yield _distinct(concat_rows([*held, _part(rows, 0, boundary)]), trace)
            held = []
        held.append(_part(rows, boundary, len(rows)))
    if held:
        yield _distinct(concat_rows(held), trace)


def _part(rows: TokenRows, start: int, stop: int) -> TokenRows:
    columns = {name: getattr(rows, name) for name in ("step", "request", "position", "experts")}
    chosen = {name: values[start:stop] for name, values in columns.items()}
    recorded = None if rows.recorded is None else rows.recorded[start:stop]
    return TokenRows(**chosen, phase=None, recorded=recorded)


def _distinct(rows: TokenRows, trace: Trace) -> NDArray[np.int64]:
    experts, layers = trace.experts_per_layer, len(trace.layers)
    first = int(trace.step[0])
    layer = np.arange(layers)[None, :, None] * experts
    cells = layers * experts
    keys = (rows.step - first)[:, None, None] * cells + layer + rows.experts.astype(np.int64)
    if rows.recorded is not None:
        keys = keys[rows.recorded]
    unique = np.unique(keys)
    return np.stack([unique // cells, unique % cells], axis=1)


def _next_access(objects: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each access the index of the next one to its object, -1 where there is none."""
    following = np.full(len(objects), -1, np.int64)
    order = np.argsort(objects, kind="stable")
    again = objects[order][1:] == objects[order][:-1]
    following[order[:-1][again]] = order[1:][again]
    return following


def write_r3(trace: Trace, file: IO[bytes], found: Findings) -> int:
    """A vLLM response a line, `routed_experts` as base64 .npy [tokens, all layers, k].

    Requests need a row for each position from 0; of a row that was run twice the last counts.
    Dense and unrecorded layers are zero, as in the engine. The trace is held in memory.
    """
    parts = list(trace.rows())
    if not parts:
        return 0
    rows = concat_rows([_part(part, 0, len(part)) for part in parts])
    known = {request.index: request for request in trace.requests}
    order = np.lexsort((rows.position, rows.request))  # stable: of equal places the last is last
    indices, starts = np.unique(rows.request[order], return_index=True)
    written = 0
    for index, places in zip(indices, np.split(order, starts[1:]), strict=True):
        chosen = _one_each(rows.position[places], places)
        if index < 0 or chosen is None:
            found.skip(NO_SEQUENCE)
            continue
        request = known.get(int(index))
        prompt = None if request is None else request.prompt_tokens
        file.write(_response(trace, rows, chosen, prompt))
        written += 1
    return written


def _one_each(position: NDArray[np.int32], places: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The place of every position from 0, None if one is missing."""
    last = np.append(position[1:] != position[:-1], True)
    if not np.array_equal(position[last], np.arange(last.sum())):
        return None
    return np.asarray(places[last])


def _response(
    trace: Trace, rows: TokenRows, places: NDArray[np.int64], prompt: int | None
) -> bytes:
    dtype = expert_dtype(trace.experts_per_layer)
    array = np.zeros((len(places), trace.model.layers, trace.top_k), dtype)
    ids = rows.experts[places]
    if rows.recorded is not None:
        ids = np.where(rows.recorded[places][:, :, None], ids, 0)
    array[:, list(trace.layers)] = ids
    npy = io.BytesIO()
    np.save(npy, array, allow_pickle=False)
    text = base64.b64encode(npy.getvalue()).decode()
    response: dict[str, Any] = {
        "model": trace.model.name,
        "choices": [{"index": 0, "routed_experts": text}],
    }
    if prompt is not None:
        output = len(places) - prompt + 1
        response["usage"] = {"prompt_tokens": prompt, "completion_tokens": output}
    return json.dumps(response).encode() + b"\n"


def expert_load(trace: Trace) -> NDArray[np.int64]:
    """[layers, experts] tokens, of a trace of tokens or of counts."""
    if trace.counts_only:
        return np.asarray(trace.counts.sum(axis=0))
    load = np.zeros((len(trace.layers), trace.experts_per_layer), np.int64)
    for row, layer in enumerate(trace.layers):
        for part in trace.batches(layer):
            ids = part.experts if part.recorded is None else part.experts[part.recorded]
            load[row] += np.bincount(ids.reshape(-1), minlength=load.shape[1])
    return load


def write_load(trace: Trace, file: IO[bytes], found: Findings) -> int:
    """[MoE layers, experts] int64, as EPLB's `weight`."""
    load = expert_load(trace)
    np.save(file, load, allow_pickle=False)
    return len(load)


def write_logical_count(trace: Trace, file: IO[bytes], found: Findings) -> int:
    """`{"logical_count": [[...]]}` over all decoder layers, dense ones zero."""
    load = np.zeros((trace.model.layers, trace.experts_per_layer), np.int64)
    load[list(trace.layers)] = expert_load(trace)
    file.write(json.dumps({"logical_count": load.tolist()}).encode())
    return len(load)
