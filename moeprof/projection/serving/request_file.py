"""Requests of the user's own: a CSV or JSON Lines file, or the requests of a recording."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moeprof.errors import InputError
from moeprof.projection.serving.requests import Request
from moeprof.trace import open_trace

_FILES = (".csv", ".jsonl")
# Other names of the same columns: Mooncake's traces, and BurstGPT's and Azure's.
_NAMES = {
    "arrival_s": ("arrival_s",),
    "input_len": ("input_len", "input_length", "prompt_tokens", "ContextTokens"),
    "output_len": ("output_len", "output_length", "output_tokens", "GeneratedTokens"),
    "cached_len": ("cached_len",),
}


def read_requests(path: str | Path) -> list[Request]:
    """The requests in `path`, the first at 0 s.

    A CSV file with a header or JSON Lines, with `input_len` and `output_len` in tokens, and
    `arrival_s` (or `timestamp`, in milliseconds, as Mooncake writes it) and `cached_len` where
    known; or a recording, whose requests without lengths are left out. Raises InputError with the
    row where one cannot be read.
    """
    path = Path(path)
    if path.suffix in _FILES and path.is_file():
        rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
        made = [_request(row, f"{path}: row {number}") for number, row in rows]
    else:
        made = [_request(row, str(path)) for row in _recorded(path)]
    if not made:
        raise InputError(f"{path}: holds no requests with input_len and output_len")
    first = min(request.arrival_s for request in made)
    return [Request(r.input_len, r.output_len, r.arrival_s - first, r.cached_len) for r in made]


def _csv_rows(path: Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from enumerate(csv.DictReader(file), 1)


def _json_rows(path: Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise InputError(f"{path}: row {number}: not JSON") from None
            if not isinstance(row, Mapping):
                raise InputError(f"{path}: row {number}: not an object with input_len")
            yield number, row


def _recorded(path: Path) -> Iterable[Mapping[str, Any]]:
    for request in open_trace(path).requests:
        if request.prompt_tokens and request.output_tokens:
            yield vars(request)


def _request(row: Mapping[str, Any], where: str) -> Request:
    values = {field: _first(row, names) for field, names in _NAMES.items()}
    if values["arrival_s"] is None and row.get("timestamp") is not None:
        values["arrival_s"] = _number(row["timestamp"], "timestamp", where) / 1e3
    for field in ("input_len", "output_len"):
        if values[field] is None:
            raise InputError(f"{where}: no {field}; columns are arrival_s, input_len, output_len")
    try:
        return Request(
            input_len=int(_number(values["input_len"], "input_len", where)),
            output_len=int(_number(values["output_len"], "output_len", where)),
            arrival_s=_number(values["arrival_s"] or 0.0, "arrival_s", where),
            cached_len=int(_number(values["cached_len"] or 0, "cached_len", where)),
        )
    except InputError as error:
        known = str(error)
        raise InputError(known if known.startswith(where) else f"{where}: {known}") from None


def _first(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _number(value: Any, field: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {field} is {value!r}, not a number") from None
    if not abs(number) < float("inf"):
        raise InputError(f"{where}: {field} is {value!r}, not a finite number")
    return number
