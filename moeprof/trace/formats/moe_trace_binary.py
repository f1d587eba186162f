"""llama-moe-trace's binary stream, and the archives that moe-routing-lab makes of it.

Records of int32 `layer, n_tokens, k` and n_tokens x k ids, one for each layer of a chunk: as
llama-moe-trace/moe-trace.cpp writes and routing-lab/06_convert_gguf_trace.py reads them
(github.com/Shriniwas410/cacheable-by-design). A chunk is a prompt of its own: the cache is cleared
before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace.formats.assemble import LayerRows, assemble
from moeprof.trace.formats.block import (
    CUT,
    Block,
    Findings,
    Format,
    Head,
    Import,
    Options,
    file_by_file,
    unknown,
)
from moeprof.trace.formats.reading import PIECE_BYTES, open_bytes, reading
from moeprof.trace.rows import Phase

_LAYERS, _TOKENS, _K = 4096, 1 << 20, 256  # no record has more
_HEADER = 3  # numbers before the ids
_LAB_ROWS = 65_536


def detect_binary(head: Head) -> bool:
    """Two records whose headers go together, or one that fills the file."""
    data = head.data[: len(head.data) // 4 * 4]
    numbers = np.frombuffer(data, "<i4")
    if len(numbers) < _HEADER or not _possible(numbers):
        return False
    following = numbers[_HEADER + int(numbers[1]) * int(numbers[2]) :]
    ids = numbers[_HEADER : _HEADER + int(numbers[1]) * int(numbers[2])]
    alike = len(following) < _HEADER or (_possible(following) and following[2] == numbers[2])
    return bool(alike and ids.size and ids.min() >= 0 and ids.max() < 65_536)


def _possible(numbers: NDArray[np.int32]) -> bool:
    layer, tokens, k = numbers[:_HEADER].tolist()
    return bool(0 <= layer < _LAYERS and 0 < tokens <= _TOKENS and 0 < k <= _K)


def read_binary(paths: Sequence[Path], options: Options) -> Import:
    """A chunk is a request and a step, all of it prompt."""
    return file_by_file(paths, _read_binary)


def _read_binary(path: Path, found: Findings) -> Iterator[Block]:
    with reading(path, "a moe-trace stream"):
        found.engine, found.rank_ordered = "llama.cpp", True
        found.note("each chunk of the text was run as a prompt of its own: it is a request")
        yield from assemble(_chunks(path, found), found)


def _chunks(path: Path, found: Findings) -> Iterator[LayerRows]:
    chunk, last_layer = 0, -1
    for layers, ids in _runs(path, found):
        before = np.concatenate([np.array([last_layer], np.int32), layers[:-1]])
        chunks = chunk + np.cumsum(layers <= before)
        chunk, last_layer = int(chunks[-1]), int(layers[-1])
        records, tokens, k = ids.shape
        yield LayerRows(
            layer=np.repeat(layers, tokens),
            experts=ids.reshape(-1, k),
            step=np.repeat(chunks, tokens).astype(np.int64),
            request=np.repeat(chunks, tokens).astype(np.int32),
            position=np.tile(np.arange(tokens), records),
            phase=np.full(records * tokens, Phase.PREFILL, np.int8),
        )


def _runs(path: Path, found: Findings) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Records of one shape that follow each other: layers [R], ids [R, tokens, k]."""
    rest = b""
    with open_bytes(path) as file:
        while data := file.read(PIECE_BYTES):
            numbers = np.frombuffer(rest + data, "<i4", (len(rest) + len(data)) // 4)
            used = 0
            while (run := _run(path, numbers[used:])) is not None:
                yield run[:, 0], run[:, _HEADER:].reshape(len(run), *run[0, 1:_HEADER].tolist())
                used += run.size
            rest = (rest + data)[4 * used :]
    if rest:
        found.skip(CUT)


def _run(path: Path, numbers: NDArray[np.int32]) -> NDArray[np.int32] | None:
    """[R, 3 + tokens x k] records of the first one's shape; None if it is not whole."""
    if len(numbers) < _HEADER:
        return None
    if not _possible(numbers):
        raise InputError(f"{path}: {numbers[:_HEADER].tolist()} is no layer, tokens and k")
    size = _HEADER + int(numbers[1]) * int(numbers[2])
    if len(numbers) < size:
        return None
    records = numbers[: len(numbers) // size * size].reshape(-1, size)
    same = (records[:, 1:_HEADER] == records[0, 1:_HEADER]).all(axis=1)
    same &= (records[:, 0] >= 0) & (records[:, 0] < _LAYERS)
    return records[: len(same) if same.all() else int(same.argmin())]


def detect_lab(head: Head) -> bool:
    """An archive with `experts` and `meta`."""
    return {"experts.npy", "meta.npy"} <= set(head.names)


def read_lab(paths: Sequence[Path], options: Options) -> Import:
    """`experts` [layers, tokens, k]; layers are counted as they stand."""
    return file_by_file(paths, _read_lab)


def _read_lab(path: Path, found: Findings) -> Iterator[Block]:
    with reading(path, "a moe-routing-lab archive"), np.load(path, allow_pickle=False) as archive:
        experts, meta = archive["experts"], json.loads(str(archive["meta"]))
        if experts.ndim != 3 or experts.dtype.kind not in "iu":
            raise ValueError(f"experts are {experts.shape}, not [layers, tokens, k] integers")
        found.experts = int(meta["num_experts"])
        found.model = str(meta.get("model", ""))
        found.note("windows and phases are not in the file: every token is a step of its own")
        for start in range(0, experts.shape[1], _LAB_ROWS):
            yield _lab_block(experts[:, start : start + _LAB_ROWS], start)


def _lab_block(experts: NDArray[Any], start: int) -> Block:
    tokens = experts.shape[1]
    return Block(
        tuple(range(len(experts))),
        experts.swapaxes(0, 1),
        step=np.arange(start, start + tokens),
        request=unknown(tokens),
        position=unknown(tokens),
        phase=np.full(tokens, Phase.UNKNOWN, np.int8),
    )


BINARY_FORMAT = Format(
    "moe-trace-binary", "llama-moe-trace's stream of records", detect_binary, read_binary
)
LAB_FORMAT = Format("routing-lab", "NPZ of moe-routing-lab", detect_lab, read_lab)
