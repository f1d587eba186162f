"""The documented plain JSONL, one object a token, and its sibling of OLMoE traces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace.formats.block import Block, Findings, Format, Head, Import, Options, file_by_file
from moeprof.trace.formats.json_lines import (
    json_pieces,
    meta_line,
    nested_values,
    object_of,
    read_requests,
)
from moeprof.trace.formats.plain_csv import parse_phases
from moeprof.trace.formats.reading import reading
from moeprof.trace.rows import Phase

NAME = "jsonl"
_IDS = pa.list_(pa.list_(pa.int32()))
_SCHEMA = pa.schema(
    {
        "step": pa.int64(),
        "request": pa.int32(),
        "position": pa.int32(),
        "phase": pa.string(),
        "token_id": pa.int32(),
        "experts": _IDS,
        "weights": pa.list_(pa.list_(pa.float32())),
    }
)
_DECODE_SCHEMA = pa.schema({"tok": pa.int32(), "layers": _IDS})


def detect(head: Head) -> bool:
    """Metadata that names the format, or a first line with a nested list `experts`."""
    first = object_of(head.first_line)
    if first.get("format") == "moeprof.jsonl":
        return True
    experts = first.get("experts")
    return isinstance(experts, list) and bool(experts) and isinstance(experts[0], list)


def read(paths: Sequence[Path], options: Options) -> Import:
    """Tokens as they stand; see docs/formats.md for the keys."""
    return file_by_file(paths, lambda path, found: _read_one(path, found, options))


def _read_one(path: Path, found: Findings, options: Options) -> Iterator[Block]:
    with reading(path, NAME):
        meta = meta_line(path, "experts")
        found.experts = _number(path, meta, "num_experts")
        found.rank_ordered = meta.get("rank_ordered")
        found.model = str(meta.get("model") or "")
        found.requests += read_requests(path, meta.get("requests", []))
        layers = meta.get("layers")
        step = 0
        for table in json_pieces(path, _SCHEMA, found, skip=int(bool(meta))):
            block = _block(path, table, layers, step)
            step = int(block.step[-1]) + 1
            yield block


def _number(path: Path, meta: dict[str, Any], name: str) -> int | None:
    value = meta.get(name)
    if value is None or (isinstance(value, int) and value > 0):
        return value
    raise InputError(f"{path}: {name} {value!r} is not a number above 0")


def _block(path: Path, table: pa.Table, layers: Sequence[int] | None, step: int) -> Block:
    experts = nested_values(path, table.column("experts"))
    tokens, count = experts.shape[:2]
    native = tuple(range(count)) if layers is None else tuple(int(n) for n in layers)
    if len(native) != count or list(native) != sorted(set(native)):
        raise InputError(f"{path}: {count} layers a token, the metadata names {list(native)}")
    weights = table.column("weights")
    return Block(
        native,
        experts,
        step=_numbers(table, "step", np.arange(step, step + tokens)),
        request=_numbers(table, "request", np.full(tokens, -1, np.int32)),
        position=_numbers(table, "position", np.full(tokens, -1, np.int32)),
        phase=parse_phases(path, table.column("phase").fill_null("").to_numpy()),
        weights=None if weights.null_count else nested_values(path, weights),
        token_id=_optional(table, "token_id"),
    )


def _optional(table: pa.Table, name: str) -> NDArray[Any] | None:
    column = table.column(name)
    if column.null_count == len(column):
        return None
    values: NDArray[Any] = column.fill_null(-1).to_numpy()
    return values


def _numbers(table: pa.Table, name: str, otherwise: NDArray[Any]) -> NDArray[Any]:
    column = table.column(name)
    if column.null_count == len(column):
        return otherwise
    if column.null_count:
        raise InputError(f"some tokens have a {name} and others do not")
    values: NDArray[Any] = column.to_numpy()
    return values


def detect_decode(head: Head) -> bool:
    """A first line of `{"tok": id, "layers": [[ids] ...]}`."""
    first = object_of(head.first_line)
    return set(first) == {"tok", "layers"} and isinstance(first["layers"], list)


def read_decode(paths: Sequence[Path], options: Options) -> Import:
    """One file a request, one line a decode token."""
    return file_by_file(paths, _read_decode)


def _read_decode(path: Path, found: Findings) -> Iterator[Block]:
    step = 0
    with reading(path, "tok-layers JSONL"):
        for table in json_pieces(path, _DECODE_SCHEMA, found):
            experts = nested_values(path, table.column("layers"))
            tokens = len(experts)
            yield Block(
                tuple(range(experts.shape[1])),
                experts,
                step=np.arange(step, step + tokens),
                request=np.zeros(tokens, np.int32),
                position=np.full(tokens, -1, np.int32),
                phase=np.full(tokens, Phase.DECODE, np.int8),
                token_id=_optional(table, "tok"),
            )
            step += tokens


FORMAT = Format(NAME, "plain JSONL, an object for each token", detect, read)
DECODE_FORMAT = Format(
    "tok-layers-jsonl", "JSONL of decode tokens (tok, layers)", detect_decode, read_decode
)
