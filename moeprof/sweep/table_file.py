"""The rows of a sweep as CSV or Parquet, swapped in when it is whole."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from moeprof.errors import InputError
from moeprof.sweep.point import COLUMNS, Row

Write = Callable[[list[Row]], None]
SUFFIXES = (".csv", ".parquet")


def check_target(path: Path, *, force: bool) -> None:
    """Raises InputError where `path` is neither CSV nor Parquet, exists, or has no folder."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: name a file that ends in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise InputError(f"{path} is a folder, name a file")
    if path.exists() and not force:
        raise InputError(f"{path} exists, it will not be overwritten without --force")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.parent} is no folder: make it first")


def write_table(path: Path, runs: Iterable[list[Row]]) -> None:
    """All rows, or nothing."""
    whole = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with (_parquet if path.suffix == ".parquet" else _csv)(whole) as write:
            for rows in runs:
                write(rows)
        os.replace(whole, path)
    finally:
        whole.unlink(missing_ok=True)


@contextmanager
def _csv(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        yield lambda rows: writer.writerows(map(_in_words, rows))


def _in_words(row: Row) -> Row:
    """True and false as TOML and JSON write them; nothing where nothing is known."""
    return {name: str(v).lower() if isinstance(v, bool) else v for name, v in row.items()}


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])
    rows: list[Row] = []

    def flush() -> None:
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

    def write(more: list[Row]) -> None:
        rows.extend(more)
        if len(rows) >= 65_536:  # a row group
            flush()

    with parquet.ParquetWriter(path, schema) as writer:
        yield write
        flush()
