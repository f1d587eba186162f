"""What a report left on the disk."""

from __future__ import annotations

from pathlib import Path

from moeprof.report.text.layout import pairs
from moeprof.report.wording import read_bytes
from moeprof.report.write import ReportFile


def report_text(report: ReportFile) -> str:
    """Where the page, the figures and the tables are."""
    values = {"page": f"{report.path} ({read_bytes(report.bytes)}, opens offline)"}
    values |= {f"figure {i}": path for i, path in enumerate(report.figures, 1)}
    if report.tables:
        values["tables"] = f"{len(report.tables)} in {Path(report.tables[0]).parent}"
    return pairs(values)
