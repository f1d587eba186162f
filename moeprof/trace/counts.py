"""Traces of counts: tokens per (window, layer, expert), for sources that keep no token order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.model import MoEModel
from moeprof.trace.rows import Phase
from moeprof.trace.schema import COUNTS, COUNTS_SCHEMA, Manifest
from moeprof.trace.streams import StreamWriter, read_stored, writing_error
from moeprof.trace.writer import TraceWriter

if TYPE_CHECKING:
    from moeprof.trace.reader import Trace


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
    table, misplaced = placed_counts(
        COUNTS, pa.Table.from_batches(batches, COUNTS_SCHEMA), manifest
    )
    return table, [*([problem] if problem else []), *misplaced]


def placed_counts(file: str, table: pa.Table, manifest: Manifest) -> tuple[pa.Table, list[str]]:
    """The rows of `table` that have a place, and a sentence if some have none."""
    window, layer, expert, tokens = (column.to_numpy() for column in table.columns[:4])
    known = np.isin(layer, manifest.layers) & (expert >= 0) & (expert < manifest.experts)
    known &= (window >= 0) & (tokens >= 0)
    if "phase" in table.column_names:
        known &= np.isin(_phases(table), list(Phase))
    if known.all():
        return table, []
    sentence = (
        f"{file}: {(~known).sum()} rows name a layer or expert that is not there, "
        "or a negative number"
    )
    return table.filter(pa.array(known)), [sentence]


def _phases(table: pa.Table) -> NDArray[np.int8]:
    """[rows] of Phase."""
    if "phase" not in table.column_names:
        return np.full(len(table), Phase.UNKNOWN, np.int8)
    phases: NDArray[np.int8] = table["phase"].fill_null(Phase.UNKNOWN).to_numpy()
    return phases


def counts_by_phase(table: pa.Table, manifest: Manifest) -> dict[Phase, NDArray[np.int64]]:
    """[layers, experts] tokens of every phase that has some."""
    place = (_phases(table) - Phase.UNKNOWN).astype(np.int64)
    loads = _summed(table, manifest, place, len(Phase))
    return {phase: loads[n] for n, phase in enumerate(Phase) if loads[n].any()}


def counted_tokens(load: NDArray[np.int64], manifest: Manifest) -> int:
    """Tokens that `load` [layers, experts] is of, if some layer was recorded for them all."""
    return int(load.sum(axis=1).max(initial=0)) // manifest.top_k


def copy_counts(trace: Trace, writer: TraceWriter, shift: int = 0) -> int:
    """Write the counts of an aggregate-only `trace`, windows later by `shift`; the window after."""
    end, tokens = shift, trace.tokens
    for batch in trace.count_rows.to_batches():
        window = pa.array(batch.column("window").to_numpy() + shift)
        end = max(end, 1 + int(window.to_numpy().max(initial=-1)))
        writer.write_counts(batch.set_column(0, batch.schema.field(0), window), tokens)
        tokens = 0
    return end


def dense_counts(table: pa.Table, manifest: Manifest) -> NDArray[np.int64]:
    """[windows, layers, experts] tokens; TraceError if the windows do not fit in memory.

    Of a recording that aggregated only windows with tokens, in order.
    """
    window = table["window"].to_numpy()
    windows = int(window.max(initial=-1)) + 1
    if manifest.aggregate_steps is not None:  # steps count from when the engine began
        numbers, window = np.unique(window, return_inverse=True)
        windows = len(numbers)
    return _summed(table, manifest, window, windows)


def _summed(
    table: pa.Table, manifest: Manifest, group: NDArray[np.int64], groups: int
) -> NDArray[np.int64]:
    """[groups, layers, experts] tokens; `group` is that of each row."""
    layer, expert, tokens = (table[name].to_numpy() for name in ("layer", "expert", "tokens"))
    try:
        counts = np.zeros((groups, len(manifest.layers), manifest.experts), np.int64)
    except (MemoryError, ValueError):
        raise TraceError(f"{COUNTS}: {groups:,} windows do not fit in memory") from None
    order = np.argsort(manifest.layers)
    rows = order[np.searchsorted(manifest.layers, layer, sorter=order)]
    np.add.at(counts, (group, rows, expert), tokens)
    return counts
