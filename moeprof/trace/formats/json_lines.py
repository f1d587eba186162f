"""JSON objects line by line, parsed by Arrow: nested lists become arrays without a Python loop."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace.formats.block import CUT_LINE, Findings
from moeprof.trace.formats.reading import line_pieces
from moeprof.trace.rows import Request


def object_of(line: str | bytes) -> dict[str, Any]:
    """The JSON object in `line`, {} if it is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def first_line(path: Path) -> bytes:
    """The first line of `path`, however long."""
    return next(line_pieces(path, 1 << 16), b"").split(b"\n", 1)[0]


def meta_line(path: Path, row_key: str) -> dict[str, Any]:
    """The object in the first line if it is metadata: {} if it has the key of a row."""
    first = object_of(first_line(path))
    return {} if row_key in first else first


def json_pieces(
    path: Path, schema: pa.Schema, found: Findings, *, skip: int = 0
) -> Iterator[pa.Table]:
    """Tables of the keys in `schema`, a few megabytes of lines at a time.

    Other keys are passed over. `skip` lines stand before the rows. A last line that is no JSON and
    has no newline was cut off: it is left out and counted.
    """
    pieces = chain(line_pieces(path), [None])
    piece = next(pieces)
    while piece is not None:
        following = next(pieces)
        for _ in range(skip):
            piece = piece.partition(b"\n")[2]
        skip = 0
        lines = piece if following is not None else _without_cut_line(piece, found)
        if lines.strip():
            yield _parse(lines, schema)
        piece = following


def _without_cut_line(piece: bytes, found: Findings) -> bytes:
    whole, newline, last = piece.rpartition(b"\n")
    if last.strip() and not object_of(last):
        found.skip(CUT_LINE)
        return whole + newline
    return piece


def _parse(lines: bytes, schema: pa.Schema) -> pa.Table:
    from pyarrow import json as arrow_json

    return arrow_json.read_json(
        pa.BufferReader(lines),
        read_options=arrow_json.ReadOptions(block_size=max(len(lines) + 1, 1 << 16)),
        parse_options=arrow_json.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="ignore"
        ),
    )


def stated_numbers(path: Path, table: pa.Table, name: str) -> NDArray[Any]:
    """A column of integers that every row must state."""
    column = table.column(name)
    if column.null_count:
        raise InputError(f"{path}: a row lacks its {name}")
    values: NDArray[Any] = column.to_numpy()
    return values


def nested_values(path: Path, column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of lists of lists, all of one shape, as [rows, L, k]. InputError if ragged."""
    rows = column.combine_chunks()
    if isinstance(rows, pa.ChunkedArray):
        rows = rows.chunk(0)
    inner = rows.flatten()
    if rows.null_count or inner.null_count or not len(inner):
        raise InputError(f"{path}: a row lacks its expert ids")
    layers, k = _even(path, rows), _even(path, inner)
    values = inner.flatten()
    if values.null_count:
        raise InputError(f"{path}: an expert id is null")
    flat: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return flat.reshape(len(rows), layers, k)


def flat_values(path: Path, column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of lists of one length as [rows, k]. InputError if ragged."""
    rows = column.combine_chunks()
    if isinstance(rows, pa.ChunkedArray):
        rows = rows.chunk(0)
    if rows.null_count or not len(rows):
        raise InputError(f"{path}: a row lacks its expert ids")
    k = _even(path, rows)
    values: NDArray[Any] = rows.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(rows), k)


def _even(path: Path, lists: pa.ListArray) -> int:
    lengths = lists.value_lengths().to_numpy()
    if lengths.min() != lengths.max() or not lengths[0]:
        raise InputError(
            f"{path}: lists of {lengths.min()} and of {lengths.max()} stand where all must be "
            "of one length above 0"
        )
    return int(lengths[0])


def read_requests(path: Path, entries: Sequence[Any]) -> list[Request]:
    """Requests from objects of `index`, `label`, `prompt_tokens`, `output_tokens`, `arrival_s`."""
    known = ("index", "label", "arrival_s", "prompt_tokens", "output_tokens")
    try:
        requests = [Request(**{k: v for k, v in e.items() if k in known}) for e in entries]
    except (TypeError, AttributeError):
        raise InputError(f"{path}: a request is an object with an index") from None
    if not all(isinstance(r.index, int) and 0 <= r.index < 2**31 for r in requests):
        raise InputError(f"{path}: the index of a request is a number from 0")
    return requests


def integers(values: Any) -> NDArray[np.int32]:
    """A nested list of one shape as an array. ValueError if it is ragged or holds other things."""
    array = np.array(values)
    if array.dtype.kind not in "iu":
        raise ValueError(f"expert ids are {array.dtype}, not integers of one shape")
    return array.astype(np.int32)
