"""Results for people: one self-contained HTML page, figures as PNG, text for the terminal.

Names are imported when they are first used: what prints one result needs no other's words.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moeprof.report.contents import ReportContents, gather_report
    from moeprof.report.figures import save_figures
    from moeprof.report.findings import Finding, find_all
    from moeprof.report.html import render_html
    from moeprof.report.write import ReportFile, check_targets, write_report

__all__ = [
    "Finding",
    "ReportContents",
    "ReportFile",
    "check_targets",
    "find_all",
    "gather_report",
    "render_html",
    "save_figures",
    "write_report",
]

_HOMES = {
    "Finding": "findings",
    "ReportContents": "contents",
    "ReportFile": "write",
    "check_targets": "write",
    "find_all": "findings",
    "gather_report": "contents",
    "render_html": "html",
    "save_figures": "figures",
    "write_report": "write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moeprof.report' has no attribute {name!r}")
    value = getattr(import_module(f"moeprof.report.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
