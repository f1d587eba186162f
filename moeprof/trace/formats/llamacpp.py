"""Tables of llama.cpp and what grew from it: moe-trace CSVs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
from moeprof.trace.formats.table import Columns, column_names, stacked, table_pieces
from moeprof.trace.rows import Phase

_NUMBERS = re.compile(r"-?\d+(,-?\d+)+")
STRIDE = (
    "the first prompt rows of every layer name all experts in turn, none twice: this file shows "
    "the stride bug of early moe-trace builds, and its prompt rows are wrong after the first token "
    "of each batch; record again with a build that reads ffn_moe_topk by its strides"
)
_STRIDE_ROWS = 4  # so many rows without a common expert are no coincidence in every layer
_STRIDE_LAYERS = 2


def detect_pairs(head: Head) -> bool:
    """`layer,expert` and nothing else: a header, or two numbers a line."""
    first = head.first_line
    lines = head.text.splitlines()[:-1][:50] or [first]
    pairs = all(re.fullmatch(r"\d+,\d+", line.strip()) for line in lines[1:])
    return pairs and (first == "layer,expert" or bool(re.fullmatch(r"\d+,\d+", first)))


def read_pairs(paths: Sequence[Path], options: Options) -> Import:
    """A row for each activation: neither tokens nor order of a layer's top-k, so counts."""
    return Import(counts=lambda found: _count_pairs(paths, found))


def _count_pairs(paths: Sequence[Path], found: Findings) -> CountTable:
    tally = np.zeros((0, 0), np.int64)
    for path in paths:
        with reading(path, "layer,expert"):
            first = column_names(path)[0]
            names = None if first == "layer" else ["layer", "expert"]
            types = {"layer": pa.int64(), "expert": pa.int64()}
            for columns in table_pieces(path, types, found, names=names):
                tally = _add(tally, columns["layer"], columns["expert"])
    used = np.flatnonzero(tally.sum(axis=1))
    return CountTable(tuple(used.tolist()), tally[used][None])


def _add(tally: NDArray[np.int64], layer: NDArray[Any], expert: NDArray[Any]) -> NDArray[np.int64]:
    """`tally` [layers, experts] with one more for each pair."""
    if not len(layer):
        return tally
    if min(layer.min(), expert.min()) < 0 or layer.max() >= 4096 or expert.max() >= 65_536:
        raise InputError("a layer or an expert is no index")
    shape = (max(len(tally), int(layer.max()) + 1), max(tally.shape[1], int(expert.max()) + 1))
    grown = np.zeros(shape, np.int64)
    grown[: tally.shape[0], : tally.shape[1]] = tally
    np.add.at(grown, (layer, expert), 1)
    return grown


def detect_rows(head: Head) -> bool:
    """No header, `pos,layer,id0,id1,...`: four and more numbers in every line."""
    lines = head.text.splitlines()[:-1][:50] or [head.first_line]
    widths = {line.count(",") for line in lines}
    return len(widths) == 1 and widths.pop() >= 3 and all(map(_NUMBERS.fullmatch, lines))


def read_rows(paths: Sequence[Path], options: Options) -> Import:
    """Each file is a request; a negative position is one of the prompt."""
    return file_by_file(paths, _read_rows)


def _read_rows(path: Path, found: Findings) -> Iterator[Block]:
    with reading(path, "moe-trace rows"):
        found.engine, found.rank_ordered = "llama.cpp", True
        found.note("positions below 0 are the prompt's, whose places are not stated")
        yield from assemble(_row_pieces(path, found), found)


def _row_pieces(path: Path, found: Findings) -> Iterator[LayerRows]:
    width = next(line_pieces(path, 1 << 16), b"").split(b"\n", 1)[0].count(b",") + 1
    if width < 3:
        raise InputError(f"{path}: a row is pos,layer and the ids of experts")
    ids = [f"id{n}" for n in range(width - 2)]
    types = {"pos": pa.int64(), "layer": pa.int32()} | dict.fromkeys(ids, pa.int32())
    for columns in table_pieces(path, types, found, names=["pos", "layer", *ids]):
        experts, prompt = stacked(columns, ids), columns["pos"] < 0
        if shows_stride_bug(columns["layer"][prompt], experts[prompt]):
            found.note(STRIDE)
        yield LayerRows(
            layer=columns["layer"],
            experts=experts,
            request=np.zeros(len(prompt), np.int32),
            position=columns["pos"],  # below 0 becomes -1, not known, once tokens are told apart
            phase=np.where(prompt, Phase.PREFILL, Phase.DECODE).astype(np.int8),
        )


def shows_stride_bug(layer: NDArray[np.integer[Any]], experts: NDArray[np.integer[Any]]) -> bool:
    """Whether prompt rows [R, k] were read across the rows of a strided view.

    Then the first E / k rows of a batch are the first token's ranking of all E experts, cut into
    pieces of k: no two of them share an expert, in any layer.
    """
    if not len(layer) or experts.min() < 0:
        return False
    k = experts.shape[1]
    rows = (int(experts.max()) + 1) // k
    order = np.argsort(layer, kind="stable")
    ordered = layer[order]
    number = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    counts = np.unique(ordered, return_counts=True)[1]
    rows = min(rows, int(counts.max()))
    chosen = order[number < rows]
    if rows < _STRIDE_ROWS or len(chosen) < _STRIDE_LAYERS * rows:
        return False
    pairs = layer[chosen, None].astype(np.int64) * 65_536 + experts[chosen]
    return bool(len(np.unique(pairs)) == pairs.size)


def detect_ranks(head: Head) -> bool:
    """A header `phase,token,layer,rank,expert`."""
    return head.first_line.replace(" ", "") == "phase,token,layer,rank,expert"


def read_ranks(paths: Sequence[Path], options: Options) -> Import:
    """A row for each activation, with its rank; each file is a request."""
    return file_by_file(paths, _read_ranks)


def _read_ranks(path: Path, found: Findings) -> Iterator[Block]:
    with reading(path, "moe-trace ranks"):
        found.engine, found.rank_ordered = "llama.cpp", True
        types = {"phase": pa.string(), "token": pa.int64(), "layer": pa.int32()}
        types |= {"rank": pa.int32(), "expert": pa.int32()}
        pieces = table_pieces(path, types, found)
        yield from assemble(pivoted(pieces, "rank", found, _rank_rows), found)


def _rank_rows(columns: Columns, first: NDArray[Any]) -> dict[str, Any]:
    return {
        "request": np.zeros(len(first), np.int32),
        "position": columns["token"][first],
        "phase": phases(columns["phase"][first]),
    }


def phases(words: NDArray[Any]) -> NDArray[np.int8]:
    """prefill, prompt, pp or 0; decode, generate, tg or 1; all else is not known."""
    known = {"prefill": 0, "prompt": 0, "pp": 0, "0": 0}
    known |= {"decode": 1, "generate": 1, "gen": 1, "tg": 1, "1": 1}
    names, inverse = np.unique(words.astype(str), return_inverse=True)
    return np.array([known.get(name.lower(), -1) for name in names], np.int8)[inverse]


def pivoted(
    pieces: Iterator[Columns], slot: str, found: Findings, keys: Any
) -> Iterator[LayerRows]:
    """Rows of one activation each as rows of k: a slot of 0 starts the next.

    The last activations of a piece may go on in the next, so they wait for it.
    """
    held: Columns = {}
    k = 0
    for columns in pieces:
        joined = {n: np.concatenate([held[n], v]) if held else v for n, v in columns.items()}
        starts = np.flatnonzero(joined[slot] == 0)
        if not len(starts) or starts[0] != 0:
            raise InputError(f"the first {slot} of a token and layer is not 0")
        if len(starts) > 1:
            whole = {name: values[: starts[-1]] for name, values in joined.items()}
            k = k or int(whole[slot].max()) + 1
            yield _pivot(whole, slot, k, starts[:-1], keys)
        held = {name: values[starts[-1] :] for name, values in joined.items()}
    if held and len(held[slot]):
        if k and len(held[slot]) < k:
            found.skip("layer cut off at the end of the file")
            return
        yield _pivot(held, slot, k or int(held[slot].max()) + 1, np.zeros(1, np.int64), keys)


def _pivot(columns: Columns, slot: str, k: int, first: NDArray[Any], keys: Any) -> LayerRows:
    """`first` [R] is where each row of k starts."""
    slots = columns[slot]
    if slots.min() < 0 or slots.max() >= k or k > 4096:
        raise InputError(f"{slot} {slots.max()} does not go with top-{k}")
    row = np.cumsum(slots == 0) - 1
    experts = np.full((len(first), k), -1, np.int32)
    experts[row, slots] = columns["expert"]
    weights = None
    if "weight" in columns:
        weights = np.zeros((len(first), k), np.float32)
        weights[row, slots] = columns["weight"]
    return LayerRows(
        layer=columns["layer"][first], experts=experts, weights=weights, **keys(columns, first)
    )


PAIRS_FORMAT = Format(
    "llamacpp-pairs", "llama.cpp moe-trace, layer,expert", detect_pairs, read_pairs
)
ROWS_FORMAT = Format("llamacpp-rows", "moe-trace of a fork, pos,layer,ids", detect_rows, read_rows)
RANKS_FORMAT = Format("llamacpp-ranks", "moe-trace of a fork, with ranks", detect_ranks, read_ranks)
