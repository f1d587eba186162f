"""A placement exported to an engine."""

from __future__ import annotations

from moeprof.placement.exports import PlanExport
from moeprof.report.text.layout import pairs, wrapped


def plan_export_text(result: PlanExport) -> str:
    """The flags on a line of their own, to copy, and what to know."""
    notes = [wrapped(note, "    ", "  - ") for note in result.notes]
    head = pairs({"engine": result.engine, "file": result.path})
    return "\n".join([head, "", result.flags, *([""] if notes else []), *notes])
