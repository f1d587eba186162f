"""Exports row by row: Parquet, CSV, JSONL. Memory holds one batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moeprof.trace.columns import to_batch
from moeprof.trace.formats.block import Findings
from moeprof.trace.reader import Trace
from moeprof.trace.rows import Request, TokenRows

UNRECORDED = "(token, layer) place that was not recorded"
_PHASES = np.array(["prefill", "decode", ""])  # -1 is the last
_BATCH = 16_384


def write_parquet(trace: Trace, file: IO[bytes], found: Findings) -> int:
    """The columns of docs/trace-format.md; null where a layer was not recorded."""
    from pyarrow import parquet

    schema = trace.manifest.segment_schema
    facts = {"moeprof.model": json.dumps(trace.model.to_dict()), "moeprof.trace": str(trace)}
    with parquet.ParquetWriter(file, schema.with_metadata(facts), compression="zstd") as writer:
        for rows in trace.rows():
            writer.write_batch(to_batch(rows, trace.manifest))
    return int(trace.tokens)


def write_csv(trace: Trace, file: IO[bytes], found: Findings) -> int:
    """The plain CSV that `import` reads."""
    from pyarrow import csv

    written = 0
    options = csv.WriteOptions(include_header=False, quoting_style="none")
    for number, rows in enumerate(trace.rows(_BATCH)):
        table = _csv_table(rows, np.array(trace.layers), found)
        if number == 0:
            file.write((",".join(table.column_names) + "\n").encode())
        csv.write_csv(table, file, write_options=options)
        written += table.num_rows
    return written


def _csv_table(rows: TokenRows, layers: NDArray[np.int64], found: Findings) -> pa.Table:
    """A row for each recorded place of `rows`."""
    tokens, count, k = rows.experts.shape
    place = np.ones(tokens * count, bool)
    if rows.recorded is not None:
        place = rows.recorded.reshape(-1)
        found.skip(UNRECORDED, int((~place).sum()))
    columns: dict[str, Any] = {
        name: np.repeat(values, count)[place] for name, values in _keys(rows).items()
    }
    columns["layer"] = np.tile(layers, tokens)[place]
    ids = rows.experts.reshape(-1, k)[place]
    columns |= {f"e{slot}": ids[:, slot] for slot in range(k)}
    if rows.weights is not None:
        gates = rows.weights.reshape(-1, k)[place].astype(np.float32)
        columns |= {f"w{slot}": gates[:, slot] for slot in range(k)}
    return pa.table(columns)


def _keys(rows: TokenRows) -> dict[str, NDArray[Any]]:
    keys: dict[str, NDArray[Any]] = {
        "step": rows.step,
        "request": rows.request,
        "position": rows.position,
    }
    if rows.phase is not None:
        keys["phase"] = _PHASES[rows.phase]
    if rows.token_id is not None:
        keys["token_id"] = rows.token_id
    return keys


def write_jsonl(trace: Trace, file: IO[bytes], found: Findings) -> int:
    """The plain JSONL that `import` reads; -1 stands where a layer was not recorded."""
    facts = {
        "format": "moeprof.jsonl",
        "model": trace.model.name,
        "num_experts": trace.experts_per_layer,
        "layers": list(trace.layers),
        "rank_ordered": trace.manifest.rank_ordered,
        "requests": [_described(request) for request in trace.requests],
    }
    file.write(json.dumps(facts).encode() + b"\n")
    for rows in trace.rows(_BATCH):
        file.write("".join(_json_lines(rows).to_pylist()).encode())
    return int(trace.tokens)


def _described(request: Request) -> dict[str, object]:
    """What is known of a request but its name, which leads back to its sender."""
    return {key: value for key, value in asdict(request).items() if key != "name"}


def _json_lines(rows: TokenRows) -> pa.Array:
    """[tokens] of JSON objects, put together by Arrow: no Python loop over what is in them."""
    ids = rows.experts.astype(np.int32)
    if rows.recorded is not None:
        ids = np.where(rows.recorded[:, :, None], ids, -1)
    keys = _keys(rows)
    phases = keys.pop("phase", None)
    parts: list[Any] = ["{"]
    for name, values in keys.items():
        parts += [f'"{name}":', pa.array(values).cast(pa.string()), ","]
    if phases is not None:
        parts += ['"phase":"', pa.array(phases, pa.string()), '",']
    parts += ['"experts":', _nested_text(ids)]
    if rows.weights is not None:
        parts += [',"weights":', _nested_text(np.nan_to_num(rows.weights.astype(np.float32)))]
    return _concatenated([*parts, "}\n"])


def _concatenated(parts: Sequence[Any]) -> pa.Array:
    joined: pa.Array = pc.binary_join_element_wise(*parts, "")
    return joined


def _nested_text(values: NDArray[Any]) -> pa.Array:
    """[T, L, k] as T strings of JSON."""
    tokens, layers, k = values.shape
    flat = pa.array(values.reshape(-1)).cast(pa.string())
    inner = _bracketed(flat, k)
    return _bracketed(inner, layers) if tokens else inner


def _bracketed(strings: pa.Array, size: int) -> pa.Array:
    lists = pa.ListArray.from_arrays(
        pa.array(np.arange(0, len(strings) + 1, size, dtype=np.int32)), strings
    )
    return _concatenated(["[", pc.binary_join(lists, ","), "]"])
