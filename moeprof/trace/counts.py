"""Traces of counts: tokens per (window, layer, expert), for sources that keep no token order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.model import MoEModel
from moeprof.trace.schema import COUNTS, COUNTS_SCHEMA, Manifest
from moeprof.trace.streams import StreamWriter, read_stored, writing_error
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
        try:
            stream = StreamWriter(writer.path / COUNTS, COUNTS_SCHEMA)
            stream.append(_to_batch(counts, model))
            stream.close()
            writer.manifest.files.append(stream.stored(writer.path))
        except OSError as error:
            raise writing_error(writer.path, error) from None


def _to_batch(counts: NDArray[np.int64], model: MoEModel) -> pa.RecordBatch:
    window, layer, expert = np.nonzero(counts)
    columns = [
        window.astype(np.int64),
        np.array(model.moe_layers, np.int32)[layer],
        expert.astype(np.int32),
        counts[window, layer, expert].astype(np.int64),
    ]
    return pa.RecordBatch.from_arrays([pa.array(c) for c in columns], schema=COUNTS_SCHEMA)


def read_counts(folder: Path, manifest: Manifest) -> tuple[pa.Table | None, list[str]]:
    """The rows of the counts that have a place, None where the trace has none, and problems."""
    if not (folder / COUNTS).exists() and manifest.stored(COUNTS) is None:
        return None, []
    batches, problem = read_stored(folder, COUNTS, manifest, COUNTS_SCHEMA)
    table = pa.Table.from_batches(batches, COUNTS_SCHEMA)
    window, layer, expert, tokens = (column.to_numpy() for column in table.columns)
    known = np.isin(layer, manifest.layers) & (expert >= 0) & (expert < manifest.experts)
    known &= (window >= 0) & (tokens >= 0)
    problems = [problem] if problem else []
    if not known.all():
        problems.append(
            f"{COUNTS}: {(~known).sum()} rows name a layer or expert that is not there, "
            "or a negative number"
        )
        table = table.filter(pa.array(known))
    return table, problems


def dense_counts(table: pa.Table, manifest: Manifest) -> NDArray[np.int64]:
    """[windows, layers, experts] tokens; TraceError if the windows do not fit in memory."""
    window, layer, expert, tokens = (column.to_numpy() for column in table.columns)
    shape = (int(window.max(initial=-1)) + 1, len(manifest.layers), manifest.experts)
    try:
        counts = np.zeros(shape, np.int64)
    except (MemoryError, ValueError):
        raise TraceError(f"{COUNTS}: {shape[0]:,} windows do not fit in memory") from None
    order = np.argsort(manifest.layers)
    rows = order[np.searchsorted(manifest.layers, layer, sorter=order)]
    np.add.at(counts, (window, rows, expert), tokens)
    return counts
