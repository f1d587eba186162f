"""Single reports: one run by one source, of MiniMax-M3 and of other models."""

from __future__ import annotations

from moeprof.errors import InputError

from .predictor import case_of
from .rows import ServedRow, load_rows, without_copies
from .trial import blank

TABLES = ("m3_serving", "throughput_points")
# How many tokens this draft proposes changes from step to step, and no report says how.
_ADAPTIVE_DRAFT = "dspark"


def report_rows(*, to_fit: bool = False) -> list[ServedRow]:
    """Reports with a time per token whose deployment moeprof can name, each run once.

    With `to_fit` those with a draft of unknown length are left out.
    """
    rows = [row for name in TABLES for row in load_rows(name) if row.tpot_ms]
    known = [row for row in without_copies(rows) if not why_not(row)]
    return [row for row in known if not (to_fit and _ADAPTIVE_DRAFT in row.draft)]


def why_not(row: ServedRow) -> str:
    """Why a report cannot be predicted; empty where it can."""
    try:
        case_of(blank(row))
    except InputError as error:
        return str(error)
    return ""
