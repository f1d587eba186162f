"""Parquet as `export` writes it: a row a token, a list column `experts.L` for each layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeprof.trace.formats.block import (
    Block,
    Findings,
    Format,
    Head,
    Import,
    Options,
    file_by_file,
    unknown,
    whole,
)
from moeprof.trace.formats.reading import MALFORMED, reading

NAME = "parquet"
_ROWS = 16_384


def detect(head: Head) -> bool:
    """A Parquet file with a column `experts.` and a number."""
    return head.data.startswith(b"PAR1") and bool(_layers(head.path))


def _layers(path: Path) -> list[int]:
    from pyarrow import parquet

    try:
        return _named(parquet.read_schema(path).names)
    except MALFORMED:
        return []


def _named(columns: Sequence[str]) -> list[int]:
    """The layers that have a column of experts."""
    parts = (name.split(".") for name in columns)
    return sorted(
        int(p[1]) for p in parts if p[0] == "experts" and len(p) == 2 and p[1].isdecimal()
    )


def read(paths: Sequence[Path], options: Options) -> Import:
    """The columns of docs/trace-format.md, as far as they are there."""
    return file_by_file(paths, _read_one)


def _read_one(path: Path, found: Findings) -> Iterator[Block]:
    from pyarrow import parquet

    with reading(path, NAME), parquet.ParquetFile(path) as file:
        facts = json.loads((file.schema_arrow.metadata or {}).get(b"moeprof.model", b"{}"))
        found.model, found.experts = str(facts.get("name") or ""), facts.get("experts")
        layers = _named(file.schema_arrow.names)
        step = 0
        for batch in file.iter_batches(_ROWS):
            block = _block(batch, layers, step)
            step += len(block)
            yield block


def _block(batch: pa.RecordBatch, layers: Sequence[int], step: int) -> Block:
    tokens, names = len(batch), set(batch.schema.names)
    weights = None
    if f"weights.{layers[0]}" in names:
        weights = np.stack([_lists(batch, f"weights.{n}", 0)[0] for n in layers], axis=1)
    otherwise = {"step": np.arange(step, step + tokens), "token_id": None}
    keys: dict[str, Any] = {
        name: _column(batch, name) if name in names else otherwise.get(name, unknown(tokens))
        for name in ("step", "request", "position", "phase", "token_id")
    }
    keys["phase"] = whole(keys["phase"], np.int8)
    return Block(tuple(layers), _experts(batch, layers), weights=weights, **keys)


def _experts(batch: pa.RecordBatch, layers: Sequence[int]) -> NDArray[Any]:
    """[T, L, k], signed and negative where a layer is null."""
    columns = [_lists(batch, f"experts.{n}", -1) for n in layers]
    if all(complete for _, complete in columns):
        return np.stack([values for values, _ in columns], axis=1)
    return np.stack([values.astype(np.int32) for values, _ in columns], axis=1)


def _lists(batch: pa.RecordBatch, name: str, null: int) -> tuple[NDArray[Any], bool]:
    """A list column as [rows, k], with `null` where it is null, and whether it never is."""
    column = batch.column(name)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    values: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    if valid.all():
        return values.reshape(len(column), -1), True
    k = column.type.list_size  # the export writes lists of fixed size
    values = values.reshape(-1, k)
    dtype = np.dtype(np.int32) if values.dtype.kind in "iu" else values.dtype
    filled = np.full((len(column), values.shape[1]), null, dtype)
    filled[valid] = values
    return filled, False


def _column(batch: pa.RecordBatch, name: str) -> NDArray[Any]:
    values: NDArray[Any] = batch.column(name).fill_null(-1).to_numpy(zero_copy_only=False)
    return values


FORMAT = Format(NAME, "Parquet, a row a token", detect, read)
