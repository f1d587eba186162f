"""Foreign recordings: what other programs write, as a trace, and a trace as what they read."""

from moeprof.trace.formats.exporting import EXPORTS, ExportResult, export_trace
from moeprof.trace.formats.import_result import ImportResult
from moeprof.trace.formats.importing import import_trace
from moeprof.trace.formats.registry import FORMATS, format_names

__all__ = [
    "EXPORTS",
    "FORMATS",
    "ExportResult",
    "ImportResult",
    "export_trace",
    "format_names",
    "import_trace",
]
