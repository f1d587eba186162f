"""TensorRT-LLM's expert statistics: a folder of counts by iteration, layer and rank."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace.formats.block import CountTable, Findings, Format, Head, Import, Options
from moeprof.trace.formats.json_lines import object_of
from moeprof.trace.formats.reading import read_json, reading


def detect_trtllm(head: Head) -> bool:
    """A folder of `rank*.safetensors`, its meta_info.json, or one of the rank files."""
    if head.names:
        return any(re.fullmatch(r"rank\d+\.safetensors", name) for name in head.names)
    if head.path.name == "meta_info.json":
        return {"num_experts", "num_experts_per_token"} <= set(object_of(head.text))
    return bool(re.match(rb'.{8}\{.*?"\d+_\d+":\{"dtype":"I64"', head.data[:65536], re.DOTALL))


def read_trtllm(paths: Sequence[Path], options: Options) -> Import:
    """Iterations are windows; ranks add up."""
    return Import(counts=lambda found: _trtllm(paths, found))


def _trtllm(paths: Sequence[Path], found: Findings) -> CountTable:
    files = list(_rank_files(paths))
    counts: dict[tuple[int, int], NDArray[np.int64]] = {}
    for file in files:
        with reading(file, "TensorRT-LLM statistics"):
            for name, values in _safetensors(file):
                match = re.fullmatch(r"(\d+)_(\d+)", name)
                if match is None:
                    found.skip("tensor that is no iteration and layer")
                    continue
                key = int(match[1]), int(match[2])
                counts[key] = counts.get(key, 0) + values
    if not counts:
        raise InputError(f"{paths[0]}: no counts of iterations in it")
    found.top_k = _stated_top_k(paths, files)
    return _table_of(counts)


def _table_of(counts: dict[tuple[int, int], NDArray[np.int64]]) -> CountTable:
    """(iteration, layer) -> [experts] as one table."""
    iterations = sorted({iteration for iteration, _ in counts})
    layers = sorted({layer for _, layer in counts})
    experts = max(len(values) for values in counts.values())
    table = np.zeros((len(iterations), len(layers), experts), np.int64)
    for (iteration, layer), values in counts.items():
        place = iterations.index(iteration), layers.index(layer)
        table[place][: len(values)] = values
    return CountTable(tuple(layers), table)


def _rank_files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        folder = path if path.is_dir() else path.parent
        if path.is_dir() or path.name == "meta_info.json":
            yield from sorted(folder.glob("rank*.safetensors"))
        else:
            yield path


def _stated_top_k(paths: Sequence[Path], files: Sequence[Path]) -> int | None:
    meta = (paths[0] if paths[0].is_dir() else files[0].parent) / "meta_info.json"
    if not meta.is_file():
        return None
    with reading(meta, "JSON"):
        return int(read_json(meta)["num_experts_per_token"])


def _safetensors(path: Path) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Every I64 vector of a safetensors file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > 100 << 20:
            raise ValueError("no safetensors: its header is too long")
        header = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            if entry["dtype"] != "I64" or len(entry["shape"]) != 1 or not 0 <= begin <= end:
                raise ValueError(f"{name} is {entry['dtype']} {entry['shape']}, not counts")
            file.seek(8 + length + begin)
            data = file.read(min(end - begin, 8 * entry["shape"][0]))
            values = np.frombuffer(data, "<i8")
            if len(values) != entry["shape"][0] or values.min(initial=0) < 0:
                raise ValueError(f"{name} is cut off or negative")
            yield name, values


FORMAT = Format("trtllm", "TensorRT-LLM expert statistics", detect_trtllm, read_trtllm)
