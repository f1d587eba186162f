"""Colibri's routing telemetry: the expert history and the trace stream.

Layouts as docs/routing-telemetry.md and c/route_trace.h of github.com/JustVugg/colibri state them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace.formats.assemble import LayerRows, assemble
from moeprof.trace.formats.block import (
    Block,
    CountTable,
    Findings,
    Format,
    Head,
    Import,
    Options,
    file_by_file,
)
from moeprof.trace.formats.reading import line_pieces, reading
from moeprof.trace.formats.table import parsed, stacked, without_cut_line

_USAGE = re.compile(r"-1 +(\d+) +(\d+)\s*\n-2 +(\d+) +\d+")
_ROUTE = re.compile(r"\d+ \d+ \d+( \d+:-?[\d.]+)+")
_COMMAS = bytes.maketrans(b" :", b",,")
_MOST = 1 << 26  # cells of a history: more is no model
VERSION = 1


def detect_usage(head: Head) -> bool:
    """The two records of negative layers."""
    return bool(_USAGE.match(head.text))


def read_usage(paths: Sequence[Path], options: Options) -> Import:
    """`.coli_usage`: uses of each expert since the history began; several files are windows."""
    return Import(counts=lambda found: _histories(paths, found))


def _histories(paths: Sequence[Path], found: Findings) -> CountTable:
    tables = []
    for path in paths:
        with reading(path, "a colibri history"):
            tables.append(_history(path))
    if len({table.shape for table in tables}) != 1:
        raise InputError(f"{paths[0]} and the others differ in layers or experts")
    counts = np.stack(tables)
    used = np.flatnonzero(counts.any(axis=(0, 2)))
    return CountTable(tuple(used.tolist()), counts[:, used])


def _history(path: Path) -> NDArray[np.int64]:
    """[layers + 1, experts]: the row behind the last is that of multi-token prediction."""
    text = path.read_text()
    header = _USAGE.match(text)
    if header is None:
        raise InputError(f"{path}: the records -1 and -2 of a colibri history are not there")
    layers, experts, version = map(int, header.groups())
    if version > VERSION or not 0 < (layers + 1) * experts <= _MOST:
        raise InputError(f"{path}: version {version}, {layers} layers x {experts} experts")
    records = np.array(text[header.end() :].split(), np.int64).reshape(-1, 3)
    records = records[records[:, 0] >= 0]  # as every reader passes over headers to come
    counts = np.zeros((layers + 1, experts), np.int64)
    if records.min(initial=0) < 0:
        raise InputError(f"{path}: an expert or a count is negative")
    np.add.at(counts, (records[:, 0], records[:, 1]), records[:, 2])
    return counts


def detect_trace(head: Head) -> bool:
    """`call row layer id:gate id:gate ...` in every line."""
    lines = head.text.splitlines()[:-1][:50] or [head.first_line]
    return all(map(_ROUTE.fullmatch, lines))


def read_trace(paths: Sequence[Path], options: Options) -> Import:
    """`ROUTE_TRACE`: a line for each row of a batch in each layer."""
    return file_by_file(paths, _read_trace)


def _read_trace(path: Path, found: Findings) -> Iterator[Block]:
    with reading(path, "a colibri trace"):
        found.engine = "colibri"
        found.note("requests and phases are not in the file; rows of a pass are its batch")
        yield from assemble(_trace_pieces(path, found), found)


def _trace_pieces(path: Path, found: Findings) -> Iterator[LayerRows]:
    """A pass ends where a call does not go on to a later layer."""
    width, place = 0, _Place()
    held: bytes | None = None
    for piece in line_pieces(path):
        lines = piece.translate(_COMMAS)
        width = width or lines.split(b"\n", 1)[0].count(b",") + 1
        if held is not None:
            yield _rows(path, held, width, place)
        held = lines
    if held is not None and (last := without_cut_line(held, width, found)).strip():
        yield _rows(path, last, width, place)


@dataclass
class _Place:
    """Where the piece before ended."""

    step: int = 0
    call: int = -1
    layer: int = -1


def _rows(path: Path, lines: bytes, width: int, place: _Place) -> LayerRows:
    """The rows of a piece; `place` moves to its end."""
    if width < 5 or width % 2 == 0:
        raise InputError(f"{path}: a line is call, row, layer and pairs of expert and gate")
    ids, gates = ([f"{kind}{n}" for n in range((width - 3) // 2)] for kind in "eg")
    pairs = [name for pair in zip(ids, gates, strict=True) for name in pair]
    types = dict.fromkeys(["call", "row", "layer", *ids], pa.int32())
    types |= dict.fromkeys(gates, pa.float32())
    columns = parsed(path, lines, ["call", "row", "layer", *pairs], types, skip=0)
    calls = np.append(np.int32(place.call), columns["call"])
    layers = np.append(np.int32(place.layer), columns["layer"])
    new = (calls[1:] != calls[:-1]) & (layers[1:] <= layers[:-1])
    steps = place.step + np.cumsum(new)
    place.step, place.call, place.layer = int(steps[-1]), int(calls[-1]), int(layers[-1])
    return LayerRows(
        layer=columns["layer"],
        experts=stacked(columns, ids),
        step=steps.astype(np.int64),
        weights=stacked(columns, gates),
    )


USAGE_FORMAT = Format("coli-usage", "colibri's expert history", detect_usage, read_usage)
TRACE_FORMAT = Format("coli-trace", "colibri's ROUTE_TRACE", detect_trace, read_trace)
