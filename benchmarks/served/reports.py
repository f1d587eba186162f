"""Single reports: one run by one source, of MiniMax-M3 and of other models."""

from __future__ import annotations

from moeprof.errors import InputError

from .predictor import case_of
from .rows import ServedRow, load_rows, without_copies
from .trial import blank

TABLES = ("m3_serving", "throughput_points")


def report_rows() -> list[ServedRow]:
    """Reports with a time per token whose deployment moeprof can name, each run once."""
    rows = [row for name in TABLES for row in load_rows(name) if row.tpot_ms]
    return [row for row in without_copies(rows) if not why_not(row)]


def why_not(row: ServedRow) -> str:
    """Why a report cannot be predicted; empty where it can."""
    try:
        case_of(blank(row))
    except InputError as error:
        return str(error)
    return ""
