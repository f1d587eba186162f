"""A trace as what other programs read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.trace.formats import (
    export_arrays,
    export_oracle,
    export_r3,
    export_requests,
    export_tables,
    power_law,
)
from moeprof.trace.formats.block import Findings
from moeprof.trace.reader import Trace
from moeprof.trace.schema import FILE_MODE

Writer = Callable[[Trace, IO[bytes], Findings], int]

# name: (what it is, the function that writes it and returns the number of rows)
EXPORTS: dict[str, tuple[str, Writer]] = {
    "parquet": ("a row a token, a list column a layer", export_tables.write_parquet),
    "csv": ("plain CSV, a row for each (token, layer)", export_tables.write_csv),
    "jsonl": ("plain JSONL, an object for each token", export_tables.write_jsonl),
    "npz": ("plain NPZ, arrays by token", export_arrays.write_npz),
    "oracle-general": ("libCacheSim's oracleGeneral", export_oracle.write_oracle),
    "r3": ("routing replay: a vLLM response a line", export_r3.write_r3),
    "load": ("load matrix [layers, experts] as .npy, for EPLB", export_arrays.write_load),
    "logical-count": ("load as JSON, for SGLang's --init-expert-location",
                      export_arrays.write_logical_count),
    "aiconfigurator": ("skew: the power law of AIConfigurator, fitted, and its nearest table",
                       power_law.write_aiconfigurator),
    "llmservingsim": ("LLMServingSim's JSONL of requests", export_requests.write_llmservingsim),
    "llmservingsim-gate": ("one layer's routing for LLMServingSim's policy CUSTOM, as Python",
                           export_requests.write_gate),
    "blis-trace": ("inference-sim's trace v2, the CSV", export_requests.write_blis_data),
    "blis-header": ("inference-sim's trace v2, the YAML beside it",
                    export_requests.write_blis_header),
}  # fmt: skip


@dataclass(frozen=True)
class ExportResult(Result):
    """A file made of a trace. `skipped` counts what the format cannot hold, by reason."""

    path: str
    format: str
    rows: int
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def export_trace(
    trace: Trace, output: str | Path, format: str, *, force: bool = False
) -> ExportResult:
    """Write `trace` in `format` (one of `EXPORTS`) to the file `output`, mode 0600.

    The file appears whole or not at all. Raises InputError if it exists and `force` is false, for
    an unknown format, and where the format needs tokens and the trace only counts.
    """
    if format not in EXPORTS:
        raise InputError(f"format '{format}' is not one of {', '.join(EXPORTS)}")
    found = Findings()
    with whole_file(Path(output), force) as file:
        rows = EXPORTS[format][1](trace, file, found)
    return ExportResult(str(output), format, rows, dict(found.skipped), list(found.notes))


@contextmanager
def whole_file(path: Path, force: bool) -> Iterator[IO[bytes]]:
    """A file to write that takes the name `path` once the block is done."""
    if path.exists() and not force:
        raise InputError(f"{path} exists, it will not be overwritten without --force")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no plain file, --force replaces only files")
    draft = path.with_name(f".{path.name}.draft")
    try:
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC, FILE_MODE)
        with open(descriptor, "w+b") as file:
            yield file
        os.replace(draft, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)
