"""NumPy archives: the documented plain NPZ, and cells of padded sequences (gpt-oss traces)."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace.formats.block import (
    Block,
    Findings,
    Format,
    Head,
    Import,
    Options,
    file_by_file,
    unknown,
    whole,
)
from moeprof.trace.formats.reading import MALFORMED, reading
from moeprof.trace.rows import Phase, Request

NAME = "npz"
_ROWS = 65_536


def detect(head: Head) -> bool:
    """An archive with `experts` [tokens, layers, k]."""
    return "experts.npy" in head.names and _dimensions(head.path) == 3


def detect_cells(head: Head) -> bool:
    """An archive with `experts` [cells, tokens, layers, k] and `n_tokens`."""
    return {"experts.npy", "n_tokens.npy"} <= set(head.names) and _dimensions(head.path) == 4


def _dimensions(path: Path) -> int:
    """Of `experts`, from its header alone."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("experts.npy") as member:
            version = np.lib.format.read_magic(member)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            return len(read(member)[0])
    except MALFORMED:
        return 0


def read(paths: Sequence[Path], options: Options) -> Import:
    """Arrays as they stand; see docs/formats.md for their names."""
    return file_by_file(paths, _read_one)


def _read_one(path: Path, found: Findings) -> Iterator[Block]:
    with reading(path, NAME), np.load(path, allow_pickle=False) as archive:
        experts = archive["experts"]
        tokens, layers = experts.shape[:2]
        native = tuple(_member(archive, "layers", np.arange(layers)).tolist())
        if len(native) != layers or list(native) != sorted(set(native)):
            raise InputError(f"{path}: layers must name the {layers} layers, each once, ascending")
        token_id = _member(archive, "token_id", None)
        columns = {
            "step": whole(_member(archive, "step", np.arange(tokens)), np.int64),
            "request": whole(_member(archive, "request", unknown(tokens))),
            "position": whole(_member(archive, "position", unknown(tokens))),
            "phase": _phases(path, _member(archive, "phase", np.full(tokens, -1))),
            "weights": _member(archive, "weights", None),
            "token_id": None if token_id is None else whole(token_id),
        }
        _facts(path, archive, found)
        _check_shapes(path, experts, columns)
        for start in range(0, tokens, _ROWS):
            part = slice(start, start + _ROWS)
            parts = {k: None if v is None else v[part] for k, v in columns.items()}
            yield Block(native, experts[part], **parts)  # type: ignore[arg-type]


def _member(archive: Any, name: str, otherwise: Any) -> Any:
    return archive[name] if name in archive.files else otherwise


def _phases(path: Path, phases: NDArray[Any]) -> NDArray[np.int8]:
    if not np.isin(phases, [-1, 0, 1]).all():
        raise InputError(f"{path}: a phase is 0 for prefill, 1 for decode, -1 for not known")
    return phases.astype(np.int8)


def _facts(path: Path, archive: Any, found: Findings) -> None:
    """Scalars and what is known of requests."""
    if "num_experts" in archive.files:
        found.experts = int(archive["num_experts"])
    if "rank_ordered" in archive.files:
        found.rank_ordered = bool(archive["rank_ordered"])
    if "model" in archive.files:
        found.model = str(archive["model"])
    prompts = _member(archive, "prompt_tokens", None)
    labels = _member(archive, "labels", None)
    count = max(0 if prompts is None else len(prompts), 0 if labels is None else len(labels))
    for index in range(count):
        found.requests.append(
            Request(
                index,
                label=None if labels is None else str(labels[index]) or None,
                prompt_tokens=None if prompts is None else _known(int(prompts[index])),
            )
        )


def _known(number: int) -> int | None:
    return None if number < 0 else number


def _check_shapes(path: Path, experts: NDArray[Any], columns: dict[str, Any]) -> None:
    for name, values in columns.items():
        wanted = experts.shape if name == "weights" else experts.shape[:1]
        if values is not None and values.shape != wanted:
            raise InputError(f"{path}: {name} has shape {values.shape}, expected {wanted}")


def read_cells(paths: Sequence[Path], options: Options) -> Import:
    """Each cell is a request of decode tokens; padding is passed over."""
    return file_by_file(paths, _read_cells)


def _read_cells(path: Path, found: Findings) -> Iterator[Block]:
    with reading(path, "padded cells"), np.load(path, allow_pickle=False) as archive:
        experts, lengths = archive["experts"], archive["n_tokens"]
        probs = _member(archive, "probs", None)
        labels = _member(archive, "labels", None)
        found.rank_ordered = None if probs is None else True
        step = 0
        for cell in range(len(experts)):  # a request
            length = int(lengths[cell])
            if not 0 <= length <= experts.shape[1]:
                raise InputError(f"{path}: cell {cell} says it has {length} tokens")
            label = None if labels is None else str(labels[cell])
            found.requests.append(Request(cell, label=label))
            yield Block(
                tuple(range(experts.shape[2])),
                experts[cell, :length],
                step=np.arange(step, step + length),
                request=np.full(length, cell, np.int32),
                position=unknown(length),
                phase=np.full(length, Phase.DECODE, np.int8),
                weights=None if probs is None else probs[cell, :length],
            )
            step += length


FORMAT = Format(NAME, "plain NPZ, arrays by token", detect, read)
CELLS_FORMAT = Format("cells-npz", "NPZ of padded sequences", detect_cells, read_cells)
