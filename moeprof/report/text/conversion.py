"""What became of files: imports, exports, and traces made of traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moeprof.report.text.layout import pairs, wrapped
from moeprof.report.wording import counted
from moeprof.trace import MergeResult
from moeprof.trace.edit import EditResult
from moeprof.trace.formats import ExportResult, ImportResult


def import_text(result: ImportResult) -> str:
    """What was read, what was left out, and what the user should know."""
    tokens = f"{result.tokens:,}" + (" (counts only)" if result.counts_only else "")
    values = {
        "format": result.format,
        "tokens": tokens,
        "requests": f"{result.requests:,}",
        "routing": f"{result.layers} MoE layers, top-{result.top_k} of {result.experts} experts",
        "skipped": _skipped(result.skipped),
        "trace": result.path,
    }
    return _with_notes(values, result.notes)


def export_text(result: ExportResult) -> str:
    """What was written."""
    values = {
        "format": result.format,
        "rows": f"{result.rows:,}",
        "skipped": _skipped(result.skipped),
        "file": result.path,
    }
    return _with_notes(values, result.notes)


def edit_text(result: EditResult) -> str:
    """What is in the new trace."""
    return pairs(
        {
            "tokens": f"{result.tokens:,} ({result.left_out:,} left out)",
            "requests": f"{result.requests:,}",
            "trace": result.path,
        }
    )


def merge_text(result: MergeResult) -> str:
    """What is in the merged trace, and what of its sources could not be read."""
    values = {
        "sources": counted(len(result.sources), "trace"),
        "tokens": f"{result.tokens:,}",
        "requests": f"{result.requests:,}",
        "complete": "yes" if result.complete else "no, a source was cut off",
        "trace": result.path,
    }
    return _with_notes(values, result.problems)


def _skipped(skipped: Mapping[str, int]) -> str:
    return "; ".join(f"{count:,} x {reason}" for reason, count in skipped.items()) or "nothing"


def _with_notes(values: Mapping[str, str], notes: Sequence[str]) -> str:
    lines = [wrapped(note, "    ", "  - ") for note in notes]
    return "\n".join([pairs(values), *([""] if lines else []), *lines])
