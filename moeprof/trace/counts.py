"""Traces of counts: tokens per (window, layer, expert), for sources that keep no token order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.model import MoEModel
from moeprof.trace.schema import COUNTS, COUNTS_SCHEMA, Manifest
from moeprof.trace.streams import StreamWriter, read_stored
from moeprof.trace.writer import TraceWriter


def write_counts(
    path: str | Path, model: MoEModel, counts: NDArray[np.int64], *, force: bool = False
) -> None:
    """Write `counts` [windows, MoE layers, experts] of tokens as a trace that holds only counts.

    Raises TraceError if the shape is not the model's or a count is negative.
    """
    shape = (len(model.moe_layers), model.experts)
    if counts.ndim != 3 or counts.shape[1:] != shape:
        raise TraceError(f"counts have shape {counts.shape}, expected [windows, {shape}]")
    if counts.size and counts.min() < 0:
        raise TraceError("counts hold a negative number of tokens")
    with TraceWriter(path, model, force=force, clock_base=0.0) as writer:
        stream = StreamWriter(writer.path / COUNTS, COUNTS_SCHEMA)
        stream.append(_to_batch(counts, model))
        stream.close()
        writer.manifest.files.append(stream.stored(writer.path))


def _to_batch(counts: NDArray[np.int64], model: MoEModel) -> pa.RecordBatch:
    window, layer, expert = np.nonzero(counts)
    columns = [
        window.astype(np.int64),
        np.array(model.moe_layers, np.int32)[layer],
        expert.astype(np.int32),
        counts[window, layer, expert].astype(np.int64),
    ]
    return pa.RecordBatch.from_arrays([pa.array(c) for c in columns], schema=COUNTS_SCHEMA)


def read_counts(folder: Path, manifest: Manifest) -> tuple[NDArray[np.int64] | None, list[str]]:
    """[windows, layers, experts] tokens, or None where the trace has no counts, and problems."""
    if not (folder / COUNTS).exists() and manifest.stored(COUNTS) is None:
        return None, []
    batches, problem = read_stored(folder, COUNTS, manifest, COUNTS_SCHEMA)
    table = pa.Table.from_batches(batches, COUNTS_SCHEMA)
    window, layer, expert, tokens = (column.to_numpy() for column in table.columns)
    ordinal = {native: index for index, native in enumerate(manifest.layers)}
    known = np.isin(layer, manifest.layers) & (expert >= 0) & (expert < manifest.experts)
    problems = [problem] if problem else []
    if not known.all():
        problems.append(f"{COUNTS}: {(~known).sum()} rows name a layer or expert that is not there")
    counts = np.zeros((int(window.max(initial=-1)) + 1, len(ordinal), manifest.experts), np.int64)
    rows = np.array([ordinal[int(native)] for native in layer[known]], np.intp)
    np.add.at(counts, (window[known], rows, expert[known]), tokens[known])
    return counts, problems
