"""Comma-separated tables in bounded pieces, as NumPy columns, parsed by Arrow on all cores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace.formats.block import CUT_LINE, Findings
from moeprof.trace.formats.reading import line_pieces

Columns = dict[str, NDArray[Any]]


def column_names(path: Path) -> list[str]:
    """The names in the first line of `path`."""
    first = next(line_pieces(path, 1 << 16), b"").split(b"\n", 1)[0]
    return [name.strip() for name in first.decode("utf-8-sig").split(",")]


def table_pieces(
    path: Path,
    types: Mapping[str, pa.DataType],
    found: Findings,
    *,
    names: Sequence[str] | None = None,
    skip: int = 0,
) -> Iterator[Columns]:
    """The columns `types` of a table, a few megabytes at a time.

    The first line names the columns unless `names` does; `skip` lines stand before the rows then.
    Other columns are passed over. A last line with too few columns was cut off, and is left out
    and counted; any other one is an error.
    """
    skip = 1 if names is None else skip
    names = column_names(path) if names is None else names
    pieces = chain(line_pieces(path), [None])
    piece = next(pieces)
    while piece is not None:
        following = next(pieces)
        lines = without_cut_line(piece, len(names), found) if following is None else piece
        columns = parsed(path, lines, names, types, skip)
        if columns:
            yield columns
        piece, skip = following, 0


def without_cut_line(piece: bytes, columns: int, found: Findings) -> bytes:
    """`piece` without its last line, if that has no newline and too few columns."""
    whole, newline, last = piece.rpartition(b"\n")
    if last and last.count(b",") + 1 < columns:
        found.skip(CUT_LINE)
        return whole + newline
    return piece


def parsed(
    path: Path, data: bytes, names: Sequence[str], types: Mapping[str, pa.DataType], skip: int
) -> Columns:
    """The columns `types` of the CSV `data`; `skip` lines stand before the rows."""
    from pyarrow import csv

    if not data.split(b"\n", skip)[-1].strip() or data.count(b"\n") < skip:
        return {}
    table = csv.read_csv(
        pa.BufferReader(data),
        read_options=csv.ReadOptions(column_names=list(names), skip_rows=skip, block_size=1 << 20),
        convert_options=csv.ConvertOptions(column_types=dict(types), include_columns=list(types)),
    )
    return {name: _values(path, name, table.column(name)) for name in types}


def _values(path: Path, name: str, column: pa.ChunkedArray) -> NDArray[Any]:
    """A column without nulls: an empty field is an error, for it is no expert and no layer."""
    if column.null_count:
        raise InputError(f"{path}: column '{name}' has an empty field")
    values: NDArray[Any] = column.to_numpy()
    return values


def stacked(columns: Columns, names: Sequence[str]) -> NDArray[Any]:
    """[rows, names] of columns of one type."""
    first = columns[names[0]]
    values = np.empty((len(first), len(names)), first.dtype)
    for index, name in enumerate(names):
        values[:, index] = columns[name]
    return values
