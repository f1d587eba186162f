"""Tables of other programs: decode CSVs, event sets, gate matrices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace.formats.assemble import LayerRows, assemble
from moeprof.trace.formats.block import Block, Findings, Format, Head, Import, Options, file_by_file
from moeprof.trace.formats.plain_csv import numbered
from moeprof.trace.formats.reading import reading
from moeprof.trace.formats.table import column_names, stacked, table_pieces
from moeprof.trace.rows import Phase


def detect_decode(head: Head) -> bool:
    """A header `pos,layer,n,e0,...`."""
    return head.first_line.startswith("pos,layer,n,e0")


def read_decode(paths: Sequence[Path], options: Options) -> Import:
    """One file a request of decode tokens."""
    return file_by_file(paths, _read_decode)


def _read_decode(path: Path, found: Findings) -> Iterator[Block]:
    with reading(path, "decode CSV"):
        found.rank_ordered = True
        yield from assemble(_decode_pieces(path, found), found)


def _decode_pieces(path: Path, found: Findings) -> Iterator[LayerRows]:
    names = column_names(path)
    ids, gates = numbered(names, "e"), numbered(names, "w")
    types = {"pos": pa.int64(), "layer": pa.int32(), "n": pa.int32()}
    types |= dict.fromkeys(ids, pa.int32()) | dict.fromkeys(gates, pa.float32())
    for columns in table_pieces(path, types, found):
        if (columns["n"] != len(ids)).any():
            raise InputError(f"{path}: a row has n other than its {len(ids)} columns of experts")
        rows = len(columns["pos"])
        yield LayerRows(
            layer=columns["layer"],
            experts=stacked(columns, ids),
            request=np.zeros(rows, np.int32),
            position=columns["pos"],
            phase=np.full(rows, Phase.DECODE, np.int8),
            weights=stacked(columns, gates) if gates else None,
        )


def detect_events(head: Head) -> bool:
    """A header with `scheduler_step` and `requested_experts`."""
    return {"scheduler_step", "layer", "requested_experts"} <= set(head.first_line.split(","))


def read_events(paths: Sequence[Path], options: Options) -> Import:
    """Sets of experts by (step, layer); all sets must be of one size, a token each."""
    return file_by_file(paths, _read_events)


def _read_events(path: Path, found: Findings) -> Iterator[Block]:
    with reading(path, "event sets"):
        found.note("events are sets of experts of a whole step: a token stands for each")
        yield from assemble(_event_pieces(path, found), found, drop_cut=False)


def _event_pieces(path: Path, found: Findings) -> Iterator[LayerRows]:
    types = {"scheduler_step": pa.int64(), "layer": pa.int32(), "requested_experts": pa.string()}
    for columns in table_pieces(path, types, found):
        sets = pc.split_pattern(pa.array(columns["requested_experts"]), " ")
        sizes = sets.value_lengths().to_numpy()
        if sizes.min() != sizes.max():
            raise InputError(
                f"{path}: sets of {sizes.min()} to {sizes.max()} experts; sets of several tokens "
                "cannot become tokens"
            )
        ids = sets.flatten().cast(pa.int32()).to_numpy().reshape(len(sets), -1)
        yield LayerRows(columns["layer"], ids, step=columns["scheduler_step"])


def detect_gates(head: Head) -> bool:
    """A header `layer_id,token_id,expert_0,...`."""
    return head.first_line.startswith("layer_id,token_id,expert_0")


def read_gates(paths: Sequence[Path], options: Options) -> Import:
    """Gate matrices, a file a layer: row i of every file is token i."""
    return Import(blocks=lambda found: _gate_blocks(paths, found))


def _gate_blocks(paths: Sequence[Path], found: Findings) -> Iterator[Block]:
    layers = [_layer_of(path) for path in paths]
    order = np.argsort(layers)
    native = tuple(int(layers[i]) for i in order)
    if len(set(native)) != len(native):
        raise InputError(f"{paths[0]}: two files are of one layer")
    found.rank_ordered = True
    found.note("layers are named by their files; experts are in order of their gate probability")
    parts = [_gate_rows(paths[i], found) for i in order]
    tokens = min(len(ids) for ids, _ in parts)
    found.skip("row that other layers lack", sum(len(ids) - tokens for ids, _ in parts))
    if len({ids.shape[1] for ids, _ in parts}) > 1:
        raise InputError(f"{paths[0]}: the files differ in the number of experts a token")
    yield Block(
        native,
        np.stack([ids[:tokens] for ids, _ in parts], axis=1),
        step=np.arange(tokens),
        request=np.full(tokens, -1, np.int32),
        position=np.full(tokens, -1, np.int32),
        phase=np.full(tokens, Phase.UNKNOWN, np.int8),
        weights=np.stack([gates[:tokens] for _, gates in parts], axis=1),
    )


def _layer_of(path: Path) -> int:
    """The number after `layer` in the name of the file."""
    found = re.search(r"layer[_-]?(\d{1,4})", path.name)
    if not found:
        raise InputError(f"{path}: gate matrices are named by their layer, as layer3.csv")
    return int(found[1])


def _gate_rows(path: Path, found: Findings) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Experts with a gate above 0, the greatest first, and the gates: [tokens, k]."""
    with reading(path, "gate matrix"):
        names = [name for name in column_names(path) if re.fullmatch(r"expert_\d+", name)]
        found.experts = len(names)
        parts = [
            _nonzero(path, stacked(columns, names))
            for columns in table_pieces(path, dict.fromkeys(names, pa.float32()), found)
        ]
        if len({ids.shape[1] for ids, _ in parts}) != 1:
            raise InputError(f"{path}: tokens have different numbers of experts")
        ids, gates = zip(*parts, strict=True)
        return np.concatenate(ids), np.concatenate(gates)


def _nonzero(
    path: Path, gates: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    counts = (gates > 0).sum(axis=1)
    k = int(counts.max())
    if not k or counts.min() != k:
        raise InputError(f"{path}: a token has {counts.min()} gates above 0 and another {k}")
    ids = np.argsort(-gates, axis=1, kind="stable")[:, :k].astype(np.int32)
    return ids, np.take_along_axis(gates, ids.astype(np.int64), axis=1)


DECODE_FORMAT = Format(
    "decode-csv", "CSV of decode tokens (pos, layer, n)", detect_decode, read_decode
)
EVENTS_FORMAT = Format(
    "events-csv", "CSV of expert sets by step and layer", detect_events, read_events
)
GATES_FORMAT = Format("gates-csv", "gate matrices, a CSV a layer", detect_gates, read_gates)
