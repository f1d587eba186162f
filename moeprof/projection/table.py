"""Many deployments at once: a CSV in the columns of served benchmarks, with predictions beside."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moeprof.errors import InputError, MoeprofError
from moeprof.projection.calibration import Measured
from moeprof.projection.laws import Laws
from moeprof.projection.speed import Speed, project_speed
from moeprof.projection.table_row import row_deployment, row_fits, row_traffic
from moeprof.quantity import Quantity
from moeprof.result import Result

# Without one of these a row says nothing of a deployment.
REQUIRED = ("model", "hardware", "precision", "concurrency", "input_len", "output_len")
PREDICTED = (
    "pred_tpot_ms",
    "pred_tpot_low_ms",
    "pred_tpot_high_ms",
    "pred_ttft_ms",
    "pred_ttft_low_ms",
    "pred_ttft_high_ms",
    "pred_output_tok_s",
    "fits",
    "problem",
)
_MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class ProjectedTable(Result):
    """What came of a table. `problems` maps what kept a row from being predicted to its rows."""

    path: str
    rows: int
    predicted: int
    problems: Mapping[str, int]


def project_table(
    path: str | Path, output: str | Path, *, laws: Laws | None = None, force: bool = False
) -> ProjectedTable:
    """Predicts every row of the CSV at `path` into `output`, which keeps every column and row.

    A row that cannot be predicted says why in `problem`; its other new columns are empty. Raises
    InputError where the file lacks a column of `REQUIRED`, or `output` exists.
    """
    path, output = Path(path), Path(output)
    columns, rows = read_table(path, REQUIRED)
    if output.exists() and not force:
        raise InputError(f"{output} exists: name another file, or overwrite it with --force")
    done = [{**row, **_predicted(row, laws)} for row in rows]
    kept = [name for name in columns if name not in PREDICTED]
    _write(output, [*kept, *PREDICTED], done, force)
    problems: dict[str, int] = {}
    for row in filter(lambda row: row["problem"], done):
        problems[row["problem"]] = problems.get(row["problem"], 0) + 1
    return ProjectedTable(str(output), len(done), len(done) - sum(problems.values()), problems)


def read_measured(path: str | Path) -> list[Measured]:
    """A user's own measurements: a CSV as for `project_table` with tpot_ms, and ttft_ms if taken.

    Raises InputError naming the file, the row and the column.
    """
    path = Path(path)
    _, rows = read_table(path, (*REQUIRED, "tpot_ms"))
    found = []
    for number, row in enumerate(rows, start=2):  # the head is line 1
        try:
            first = _milliseconds(row, "ttft_ms") if (row.get("ttft_ms") or "").strip() else None
            seconds = _milliseconds(row, "tpot_ms") / 1e3
            found.append(
                Measured(row_deployment(row), row_traffic(row), seconds, first and first / 1e3)
            )
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
    if not found:
        raise InputError(f"{path}: holds no measurement; write one row a run, 2 to 5 are enough")
    return found


def read_table(path: Path, required: Sequence[str]) -> tuple[list[str], list[dict[str, str]]]:
    """(columns, rows) of a CSV. Raises InputError where it is none or lacks a required column."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path}: larger than {_MOST_BYTES >> 20} MiB: split it")
        text = path.read_text(encoding="utf-8-sig")
        reader = csv.DictReader(io.StringIO(text), restkey="", restval="")
        columns = list(reader.fieldnames or ())
        rows = [{name: value for name, value in row.items() if name} for row in reader]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file: {error}") from None
    missing = [name for name in required if name not in columns]
    if missing:
        raise InputError(f"{path}, line 1: no column {', '.join(missing)}; add it to the head")
    return columns, rows


def _predicted(row: Mapping[str, str], laws: Laws | None) -> dict[str, str]:
    empty = dict.fromkeys(PREDICTED, "")
    try:
        deployment, traffic = row_deployment(row), row_traffic(row)
        speed = project_speed(deployment, traffic, laws=laws)
        fits = row_fits(deployment, traffic)
    except MoeprofError as error:
        return {**empty, "problem": str(error)}
    return {**empty, **_columns(speed), "fits": str(fits).lower()}


def _columns(speed: Speed) -> dict[str, str]:
    tpot, ttft = _ends(speed.tpot_ms), _ends(speed.ttft_ms)
    return dict(zip(PREDICTED, (*tpot, *ttft, _digits(speed.output_tok_s.value)), strict=False))


def _ends(each: Quantity) -> tuple[str, str, str]:
    return _digits(each.value), _digits(each.low), _digits(each.high)


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _milliseconds(row: Mapping[str, str], column: str) -> float:
    text = (row.get(column) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise InputError(f"{column}: '{text}' is no time in milliseconds")
    return value


def _write(
    path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]], force: bool
) -> None:
    """All of it or nothing. Raises InputError where `path` exists and `force` is not set."""
    from moeprof.trace.formats.exporting import whole_file  # loads every format

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with whole_file(path, force) as file:
        file.write(text.getvalue().encode())
