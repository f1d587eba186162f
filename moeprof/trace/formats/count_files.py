"""Sources that only count: imatrix GGUF, EPLB load matrices, exllamav3 profiles."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.model.gguf import GgufHeader
from moeprof.trace.formats.block import CountTable, Findings, Format, Head, Import, Options
from moeprof.trace.formats.reading import open_bytes, read_json, reading

_COUNTS = re.compile(r"blk\.(\d+)\.ffn_(?:gate|up|down|gate_up)_exps\.weight\.counts")


def detect_imatrix(head: Head) -> bool:
    """GGUF; whether it is an importance matrix its tensors say."""
    return head.data.startswith(b"GGUF")


def read_imatrix(paths: Sequence[Path], options: Options) -> Import:
    """Activations of each expert over the calibration text; several files add up as windows."""
    return Import(counts=lambda found: _windows(paths, _imatrix, found))


def _windows(paths: Sequence[Path], read: Any, found: Findings) -> CountTable:
    """Each file is a window; all must be of one shape."""
    tables = [read(path, found) for path in paths]
    first = tables[0]
    for path, table in zip(paths, tables, strict=True):
        if table.layers != first.layers or table.counts.shape[2] != first.counts.shape[2]:
            raise InputError(f"{path}: differs from {paths[0]} in layers or experts")
    return CountTable(first.layers, np.concatenate([table.counts for table in tables]))


def _imatrix(path: Path, found: Findings) -> CountTable:
    with reading(path, "imatrix GGUF"), open_bytes(path) as file:
        gguf = GgufHeader(file)
        by_layer: dict[int, NDArray[np.float32]] = {}
        for tensor in gguf.tensors:
            match = _COUNTS.fullmatch(tensor.name)
            if match is None:
                continue
            if math.prod(tensor.shape) < 2:
                found.skip("layer whose counts collapsed to one value")
                continue
            by_layer.setdefault(int(match[1]), gguf.floats(tensor))
        if not by_layer:
            raise InputError(f"{path}: this GGUF has no counts of experts (<tensor>.counts)")
        layers = tuple(sorted(by_layer))
        values = np.stack([by_layer[layer] for layer in layers]).astype(np.float64)
        return CountTable(layers, _whole(values)[None])


def _whole(values: NDArray[Any]) -> NDArray[np.int64]:
    """Counts as integers. ValueError unless they are finite and not negative."""
    if not np.isfinite(values).all() or values.min(initial=0) < 0 or values.max(initial=0) >= 2**62:
        raise ValueError("a count is negative or not finite")
    return np.asarray(np.rint(values).astype(np.int64))


def detect_load(head: Head) -> bool:
    """An .npy of two or three dimensions whose file is not a mosl layer, or JSON logical_count."""
    if head.data.startswith(b"\x93NUMPY"):
        return not re.fullmatch(r"layer\d+\.npy", head.path.name)
    return head.text.lstrip()[:1] == "{" and '"logical_count"' in head.text


def read_load(paths: Sequence[Path], options: Options) -> Import:
    """[layers, experts] or [windows, layers, experts]; MoE layers, or all with dense ones zero."""
    return Import(counts=lambda found: _windows(paths, lambda p, f: _load(p, f, options), found))


def _load(path: Path, found: Findings, options: Options) -> CountTable:
    with reading(path, "a load matrix"):
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            values = np.array(read_json(path)["logical_count"])
        if values.ndim not in (2, 3) or values.dtype.kind not in "iuf":
            raise ValueError(f"{values.dtype} {values.shape}, not [layers, experts] counts")
        counts = _whole(values[None] if values.ndim == 2 else values)
        if options.moe_layers is not None and counts.shape[1] == len(options.moe_layers):
            return CountTable(options.moe_layers, counts)
        found.note("layers are counted as they stand; --model names native ones")
        used = np.flatnonzero(counts.any(axis=(0, 2)))
        return CountTable(tuple(used.tolist()), counts[:, used])


def detect_profile(head: Head) -> bool:
    """An archive with `counts_decode` or `counts_prefill`."""
    return bool({"counts_decode.npy", "counts_prefill.npy"} & set(head.names))


def read_profile(paths: Sequence[Path], options: Options) -> Import:
    """Each prompt is a window, its prefill and decode added up."""
    return Import(counts=lambda found: _windows(paths, _profile, found))


def _profile(path: Path, found: Findings) -> CountTable:
    with reading(path, "a profile"), np.load(path, allow_pickle=False) as archive:
        banks = [archive[name] for name in archive.files if name.startswith("counts_")]
        if {bank.ndim for bank in banks} != {3} or len({bank.shape for bank in banks}) != 1:
            raise ValueError("counts are not [prompts, layers, experts]")
        found.note("MoE layers are counted from 0; --model names native ones")
        counts = _whole(np.asarray(np.sum(banks, axis=0, dtype=np.float64)))
        return CountTable(tuple(range(counts.shape[1])), counts)


IMATRIX_FORMAT = Format("imatrix", "llama.cpp imatrix GGUF, counts", detect_imatrix, read_imatrix)
LOAD_FORMAT = Format("load", "EPLB load matrix, .npy or JSON logical_count", detect_load, read_load)
PROFILE_FORMAT = Format(
    "exl3-profile", "exllamav3 --moe_cpu_profile census", detect_profile, read_profile
)
