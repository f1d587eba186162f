"""route_trace v1, which BigMoeOnEdge writes: the routing of a run and the bytes of its experts.

Columns and comments as docs/telemetry.md and the CSV sink of github.com/Helldez/BigMoeOnEdge
(Apache-2.0) have them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace.formats.assemble import assemble
from moeprof.trace.formats.block import (
    Block,
    Findings,
    Format,
    Head,
    Import,
    Options,
    file_by_file,
)
from moeprof.trace.formats.llamacpp import phases, pivoted
from moeprof.trace.formats.reading import line_pieces, reading
from moeprof.trace.formats.table import Columns, table_pieces
from moeprof.trace.rows import Phase

_FIRST = b"# route_trace v1"
_MODEL = re.compile(r"# model=(.*) arch=\S* n_layer=\d+ n_expert=(\d+) n_expert_used=(\d+)")
_LAYER = re.compile(r"# layer=(\d+) expert_bytes=(\d+)")


def detect_route_trace(head: Head) -> bool:
    """The comment in the first line."""
    return head.data.startswith(_FIRST)


def read_route_trace(paths: Sequence[Path], options: Options) -> Import:
    """Each turn is a request."""
    return file_by_file(paths, _read_route_trace)


def _read_route_trace(path: Path, found: Findings) -> Iterator[Block]:
    with reading(path, "route_trace v1"):
        found.rank_ordered = True  # slot 0 is the router's first choice
        found.note("residency is not kept")
        yield from assemble(pivoted(_pieces(path, found), "slot", found, _rows), found)


def _pieces(path: Path, found: Findings) -> Iterator[Columns]:
    """The table behind the comments, with the engine's steps in place of the file's.

    What the file calls a step is a token's position in the context. A prompt's pass is written
    layer by layer, and ends where the layer falls back; the last layer routes its last token alone.
    """
    skipped, names = _behind_comments(path, found)
    commented = set(found.expert_bytes)
    types = {"turn": pa.int32(), "phase": pa.string(), "step": pa.int64(), "layer": pa.int32()}
    types |= {"slot": pa.int32(), "expert": pa.int32(), "weight": pa.float32()}
    if "expert_bytes" in names:
        types["expert_bytes"] = pa.int64()
    last: dict[str, NDArray[Any]] = {}
    step = 0
    for columns in table_pieces(path, types, found, names=names, skip=skipped):
        if "expert_bytes" in columns:
            _take_sizes(columns["layer"], columns.pop("expert_bytes"), commented, found)
        columns["position"] = columns["step"]
        prompt = phases(columns["phase"]) == Phase.PREFILL
        columns["step"] = np.where(prompt, -1, columns["step"])
        joined = {
            name: np.concatenate([last.get(name, columns[name][:1]), columns[name]])
            for name in ("turn", "phase", "step", "layer")
        }
        new = joined["layer"][1:] < joined["layer"][:-1]
        for name in ("turn", "phase", "step"):
            new |= joined[name][1:] != joined[name][:-1]
        last = {name: values[-1:] for name, values in joined.items()}
        columns["step"] = step + np.cumsum(new)
        step = int(columns["step"][-1])
        yield columns


def _behind_comments(path: Path, found: Findings) -> tuple[int, list[str]]:
    """How many lines stand before the first row, and the names of the columns."""
    head = next(line_pieces(path, 1 << 16), b"").decode().splitlines()
    comments = next((n for n, line in enumerate(head) if not line.startswith("#")), len(head))
    names = [name.strip() for name in head[comments].split(",")]
    if not {"turn", "phase", "step", "layer", "slot", "expert", "weight"} <= set(names):
        raise InputError(f"{path}: the columns of route_trace v1 are not there")
    for line in head[:comments]:
        if model := _MODEL.match(line):
            found.model = PurePath(model[1].strip()).stem
            found.experts, found.top_k = int(model[2]) or None, int(model[3]) or None
        elif (layer := _LAYER.match(line)) and int(layer[2]):
            found.expert_bytes[int(layer[1])] = int(layer[2])
    return comments + 1, names


def _take_sizes(
    layer: NDArray[Any], read: NDArray[np.int64], commented: set[int], found: Findings
) -> None:
    """Bytes that the rows read, 0 for a hit, for layers whose size no comment states.

    A layer that reads now this and now that has no size: 0.
    """
    pairs = np.unique(np.stack([layer.astype(np.int64), read], axis=1), axis=0)
    for name, size in pairs[pairs[:, 1] > 0].tolist():
        if name not in commented and found.expert_bytes.setdefault(name, size) != size:
            found.expert_bytes[name] = 0


def _rows(columns: Columns, first: NDArray[Any]) -> dict[str, Any]:
    return {
        "step": columns["step"][first],
        "request": np.maximum(columns["turn"][first], -1),
        "position": columns["position"][first],
        "phase": phases(columns["phase"][first]),
    }


ROUTE_FORMAT = Format(
    "route-trace", "route_trace v1 of BigMoeOnEdge", detect_route_trace, read_route_trace
)
