"""What training frameworks and studies write: Megatron, FLAME-MoE Parquet, mosl layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace.formats.assemble import LayerRows, assemble
from moeprof.trace.formats.block import (
    Block,
    Findings,
    Format,
    Head,
    Import,
    Options,
    file_by_file,
    unknown,
)
from moeprof.trace.formats.json_lines import json_pieces, stated_numbers
from moeprof.trace.formats.reading import read_json, reading
from moeprof.trace.rows import Phase, Request

_MEGATRON = pa.schema(
    {
        "step": pa.int64(),
        "block": pa.string(),
        "layer": pa.int32(),
        "topk": pa.int32(),
        "top_indices": pa.list_(pa.list_(pa.int32())),
    }
)


def detect_megatron(head: Head) -> bool:
    """A first line with `top_indices` and `stage`."""
    return bool(re.match(r"\s*\{", head.text)) and all(
        f'"{key}"' in head.first_line for key in ("stage", "layer", "top_indices")
    )


def read_megatron(paths: Sequence[Path], options: Options) -> Import:
    """A line for each (step, layer) of a rank; a file is a rank."""
    return file_by_file(paths, _read_megatron)


def _read_megatron(path: Path, found: Findings) -> Iterator[Block]:
    with reading(path, "Megatron router trace"):
        found.engine = "megatron"
        found.note("sequences are not in the file: request and position are not known")
        yield from assemble(_megatron_pieces(path, found), found, drop_cut=False)


def _megatron_pieces(path: Path, found: Findings) -> Iterator[LayerRows]:
    last: int | None = None
    for table in json_pieces(path, _MEGATRON, found):
        decoder = pc.not_equal(table.column("block"), "mtp").fill_null(True)
        found.skip("line of a prediction layer (mtp)", len(table) - pc.sum(decoder).as_py())
        table = table.filter(decoder)
        if not len(table):
            continue
        if table.column("top_indices").null_count:
            raise InputError(f"{path}: a row lacks its top_indices")
        tokens = pc.list_value_length(table.column("top_indices")).to_numpy()
        inner = table.column("top_indices").combine_chunks().flatten()
        lengths = inner.value_lengths().to_numpy()
        if not len(lengths) or lengths.min() != lengths.max():
            raise InputError(f"{path}: tokens have different numbers of experts")
        step = stated_numbers(path, table, "step")
        if (last is not None and step[0] < last) or (np.diff(step) < 0).any():
            raise InputError(f"{path}: steps go back")
        last = int(step[-1])
        yield LayerRows(
            layer=np.repeat(stated_numbers(path, table, "layer"), tokens),
            experts=inner.flatten().to_numpy().reshape(len(inner), -1),
            step=np.repeat(step, tokens),
        )


def detect_flame(head: Head) -> bool:
    """Parquet in a file `layer_NN.parquet`, or a folder of them."""
    names = head.names or (head.path.name,)
    parquet = head.data.startswith(b"PAR1") or bool(head.names)
    return parquet and any(re.fullmatch(r"layer_\d+\.parquet", name) for name in names)


def read_flame(paths: Sequence[Path], options: Options) -> Import:
    """A file a layer, all aligned by row: `indices` and `scores` of the top-k."""
    files = _in_folders(paths, "layer_*.parquet")
    return Import(blocks=lambda found: _flame_blocks(files, found))


def _in_folders(paths: Sequence[Path], pattern: str) -> list[Path]:
    return [
        file for path in paths for file in (sorted(path.glob(pattern)) if path.is_dir() else [path])
    ]


def _layers_of(files: Sequence[Path]) -> list[tuple[int, Path]]:
    """Files by the native layer that their name states."""
    layers = []
    for file in files:
        match = re.search(r"layer_?(\d{1,5})\.", file.name)
        if match is None:
            raise InputError(f"{file}: its name does not say which layer it is")
        layers.append((int(match[1]), file))
    if len({layer for layer, _ in layers}) != len(layers) or not layers:
        raise InputError(f"{files[0] if files else 'no file'}: each layer takes one file")
    return sorted(layers)


def _flame_blocks(files: Sequence[Path], found: Findings) -> Iterator[Block]:
    from pyarrow import parquet

    layers = _layers_of(files)
    found.rank_ordered = True
    found.note("rows are tokens of training sequences: request, position and phase are not known")
    with reading(files[0], "FLAME-MoE Parquet"):
        tables = [parquet.ParquetFile(file) for _, file in layers]
        try:
            rows = {table.metadata.num_rows for table in tables}
            found.skip("row that other layers lack", max(rows) * len(rows) - sum(rows))
            iterators = [table.iter_batches(65_536) for table in tables]
            step = 0
            for batches in zip(*iterators, strict=False):
                block = _flame_block(tuple(n for n, _ in layers), batches, step)
                step += len(block)
                yield block
        finally:
            for table in tables:
                table.close()


def _flame_block(layers: tuple[int, ...], batches: Sequence[pa.RecordBatch], step: int) -> Block:
    tokens = min(map(len, batches))
    return Block(
        layers,
        np.stack([_lists(batch.column("indices"))[:tokens] for batch in batches], axis=1),
        step=np.arange(step, step + tokens),
        request=unknown(tokens),
        position=unknown(tokens),
        phase=np.full(tokens, Phase.UNKNOWN, np.int8),
        weights=np.stack([_lists(batch.column("scores"))[:tokens] for batch in batches], axis=1),
    )


def _lists(column: pa.Array) -> NDArray[Any]:
    values: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1)


def detect_mosl(head: Head) -> bool:
    """A folder with layer000.npy and seq_lens.npy."""
    return "seq_lens.npy" in head.names and any(
        re.fullmatch(r"layer\d+\.npy", name) for name in head.names
    )


def read_mosl(paths: Sequence[Path], options: Options) -> Import:
    """A folder: a file [tokens, k] for each layer, the lengths of the sequences, meta.json."""
    return file_by_file(paths, _read_mosl)


def _read_mosl(path: Path, found: Findings) -> Iterator[Block]:
    with reading(path, "mosl layers"):
        lengths = np.load(path / "seq_lens.npy", allow_pickle=False).astype(np.int64)
        if lengths.ndim != 1 or (lengths < 0).any():
            raise InputError(f"{path}: seq_lens.npy must be lengths of sequences")
        named = _layers_of(sorted(path.glob("layer*.npy")))
        arrays = [np.load(file, mmap_mode="r", allow_pickle=False) for _, file in named]
        if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 2:
            raise InputError(f"{path}: its layers differ in shape, or are not [tokens, k]")
        if lengths.sum() != len(arrays[0]):
            raise InputError(f"{path}: {lengths.sum():,} tokens by seq_lens.npy, other in layers")
        _mosl_facts(path, len(lengths), found)
        yield from _mosl_blocks(tuple(n for n, _ in named), arrays, lengths)


def _mosl_blocks(
    layers: tuple[int, ...], arrays: Sequence[NDArray[Any]], lengths: NDArray[np.int64]
) -> Iterator[Block]:
    tokens = len(arrays[0])
    request = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    position = np.arange(tokens) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    for start in range(0, tokens, 65_536):
        part = slice(start, start + 65_536)
        count = len(request[part])
        yield Block(
            layers,
            np.stack([array[part] for array in arrays], axis=1),
            step=np.arange(start, start + count),
            request=request[part],
            position=position[part].astype(np.int32),
            phase=np.full(count, Phase.UNKNOWN, np.int8),
        )


def _mosl_facts(path: Path, requests: int, found: Findings) -> None:
    """The model from meta.json, labels from domains.json, where they are."""
    found.note("phases and batches are not in the files: every token is a step of its own")
    meta, domains = path / "meta.json", path / "domains.json"
    if meta.is_file():
        found.model = str(read_json(meta).get("repo", ""))
    labels = read_json(domains) if domains.is_file() else None
    if isinstance(labels, list) and len(labels) == requests:
        found.requests += [Request(i, label=str(label)) for i, label in enumerate(labels)]


MEGATRON_FORMAT = Format(
    "megatron", "Megatron-LM RouterTracer JSONL", detect_megatron, read_megatron
)
FLAME_FORMAT = Format("flame-moe", "FLAME-MoE Parquet, a file a layer", detect_flame, read_flame)
MOSL_FORMAT = Format("mosl", "mosl folder of layerNNN.npy", detect_mosl, read_mosl)
