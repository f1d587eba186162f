"""Exports as arrays: NPZ and load."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from moeprof.trace.formats.block import Findings
from moeprof.trace.reader import Trace
from moeprof.trace.rows import TokenRows
from moeprof.trace.schema import expert_dtype


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
