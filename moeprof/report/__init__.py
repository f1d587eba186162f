"""Results for people: one self-contained HTML page, figures as PNG, text for the terminal."""

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
