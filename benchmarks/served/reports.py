"""Single reports: one run by one source, of MiniMax-M3 and of other models."""

from __future__ import annotations

from dataclasses import replace

from moeprof.errors import InputError

from .predictor import case_of
from .rows import ServedRow, load_rows, without_copies
from .trial import blank

TABLES = ("m3_serving", "throughput_points")


def report_rows() -> list[ServedRow]:
    """Reports with a time per token whose deployment moeprof can name, each run once.

    Of no release: what a single report is off by is its model's and its machine's for all we know.
    """
    rows = [row for name in TABLES for row in load_rows(name) if row.tpot_ms]
    known = [row for row in without_copies(rows) if not why_not(row)]
    return [replace(row, engine_version="") for row in known]


def why_not(row: ServedRow) -> str:
    """Why a report cannot be predicted; empty where it can."""
    try:
        case_of(blank(row))
    except InputError as error:
        return str(error)
    return ""
