"""Findings as numbered paragraphs."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.report.findings import Finding
from moeprof.report.text.layout import wrapped


def findings_text(findings: Sequence[Finding]) -> str:
    """Headline, meaning and provenance of each finding; problems are marked with '!'."""
    return "\n\n".join(_paragraph(number, f) for number, f in enumerate(findings, 1))


def _paragraph(number: int, finding: Finding) -> str:
    mark = f"{number}." if finding.tone == "fact" else "!"
    headline = wrapped(finding.headline, "    ", f"{mark:<4}")
    meaning = wrapped(f"{finding.meaning} [{finding.provenance}]", "    ")
    return f"{headline}\n{meaning}"
