"""The documented plain CSV: one row for each layer of each token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from moeprof.errors import InputError
from moeprof.trace.formats.assemble import LayerRows, assemble
from moeprof.trace.formats.block import Block, Findings, Format, Head, Import, Options, file_by_file
from moeprof.trace.formats.reading import reading
from moeprof.trace.formats.table import Columns, column_names, stacked, table_pieces
from moeprof.trace.rows import Phase

NAME = "csv"
KEYS = {
    "step": pa.int64(),
    "request": pa.int32(),
    "position": pa.int64(),
    "token_id": pa.int32(),
    "layer": pa.int32(),
}
PHASES = {"": Phase.UNKNOWN, "prefill": Phase.PREFILL, "decode": Phase.DECODE}


def detect(head: Head) -> bool:
    """A header with `layer` and `e0`."""
    names = [name.strip() for name in head.first_line.split(",")]
    return "layer" in names and "e0" in names and "pos" not in names


def read(paths: Sequence[Path], options: Options) -> Import:
    """Rows as they stand; see docs/formats.md for the columns."""
    return file_by_file(paths, read_one)


def read_one(path: Path, found: Findings) -> Iterator[Block]:
    """The tokens of one file."""
    with reading(path, NAME):
        yield from assemble(_pieces(path, found), found)


def _pieces(path: Path, found: Findings) -> Iterator[LayerRows]:
    names = column_names(path)
    ids, gates = numbered(names, "e"), numbered(names, "w")
    if "layer" not in names or not ids:
        raise InputError(f"{path}: a plain CSV has the columns layer, e0, e1, ...")
    if gates and len(gates) != len(ids):
        raise InputError(f"{path}: {len(ids)} columns of experts and {len(gates)} of weights")
    types = {name: kind for name, kind in KEYS.items() if name in names}
    types |= dict.fromkeys(ids, pa.int32()) | dict.fromkeys(gates, pa.float32())
    if "phase" in names:
        types["phase"] = pa.string()
    for columns in table_pieces(path, types, found):
        yield _rows(path, columns, ids, gates)


def numbered(names: Sequence[str], letter: str) -> list[str]:
    """e0, e1, ... as far as they go."""
    found = {name for name in names if re.fullmatch(rf"{letter}\d+", name)}
    return [f"{letter}{n}" for n in range(len(found)) if f"{letter}{n}" in found]


def _rows(path: Path, columns: Columns, ids: Sequence[str], gates: Sequence[str]) -> LayerRows:
    return LayerRows(
        layer=columns["layer"],
        experts=stacked(columns, ids),
        step=columns.get("step"),
        request=columns.get("request"),
        position=columns.get("position"),
        phase=parse_phases(path, columns["phase"]) if "phase" in columns else None,
        token_id=columns.get("token_id"),
        weights=stacked(columns, gates) if gates else None,
    )


def parse_phases(path: Path, words: np.ndarray) -> np.ndarray:
    """prefill, decode or nothing, by name."""
    distinct, inverse = np.unique(words.astype(str), return_inverse=True)
    unknown = [word for word in distinct if word not in PHASES]
    if unknown:
        raise InputError(f"{path}: phase '{unknown[0]}' is not prefill, decode or empty")
    return np.array([PHASES[word] for word in distinct], np.int8)[inverse]


FORMAT = Format(NAME, "plain CSV, a row for each (token, layer)", detect, read)
