"""Foreign files made small: what each test imports, and where the shared recordings are."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moeprof.trace import Trace, open_trace, validate_trace
from moeprof.trace.formats import ImportResult, import_trace

TOKENS, LAYERS, K, EXPERTS = 12, 3, 2, 16


def shared(*parts: str) -> Path:
    """A file of the shared folder, which stands beside some ancestor of this repository."""
    named = os.environ.get("MOEPROF_SHARED")
    folders = [Path(named)] if named else [p / "shared" for p in Path(__file__).parents]
    for folder in folders:
        if (folder.joinpath(*parts)).exists():
            return folder.joinpath(*parts)
    pytest.skip(f"the shared recordings are not here ({'/'.join(parts)}); set MOEPROF_SHARED")


def routing(tokens: int = TOKENS, seed: int = 0, experts: int = EXPERTS) -> NDArray[np.int64]:
    """[tokens, 3, 2] distinct ids; the highest id is there, so the number of experts shows."""
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((tokens, LAYERS, experts)), axis=2)[:, :, :K]
    ids[0, 0] = experts - 1, 0
    return ids


def imported(files: Any, output: Path, **options: Any) -> tuple[Trace, ImportResult]:
    """The trace that an import makes, which must be sound."""
    result = import_trace(files, output, **options)
    assert validate_trace(output).problems == []
    return open_trace(output), result


def ids_of(trace: Trace) -> NDArray[Any]:
    """[tokens, layers, k] of a trace in which everything was recorded."""
    return np.stack([trace.experts(layer) for layer in trace.layers], axis=1)


def write_csv(path: Path, header: str, rows: Iterable[Iterable[Any]]) -> Path:
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_lines(path: Path, objects: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(thing) + "\n" for thing in objects))
    return path


def gguf(tensors: dict[str, NDArray[np.float32]]) -> bytes:
    """A GGUF file, version 3, with one key and F32 tensors."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), 1)
    head += text("general.type") + struct.pack("<I", 8) + text("imatrix")
    data = b""
    for name, values in tensors.items():
        shape = values.shape[::-1]
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", 0, len(data))
        data += values.astype("<f4").tobytes()
        data += b"\0" * (-len(data) % 32)
    return head + b"\0" * (-len(head) % 32) + data


def safetensors(tensors: dict[str, NDArray[np.int64]]) -> bytes:
    header, data = {}, b""
    for name, values in tensors.items():
        end = len(data) + values.nbytes
        header[name] = {"dtype": "I64", "shape": [len(values)], "data_offsets": [len(data), end]}
        data += values.astype("<i8").tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data
