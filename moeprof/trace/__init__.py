"""The recording: what it holds, how it is written, read, checked and made up."""

from moeprof.trace.batching import Batching, rebatch
from moeprof.trace.counts import write_counts
from moeprof.trace.edit import EditResult, migrate_trace, redact_trace, slice_trace
from moeprof.trace.inspection import TraceInfo, describe_trace, validate_trace
from moeprof.trace.labels import shorten_labels
from moeprof.trace.merge import MergeResult, merge_traces
from moeprof.trace.reader import LayerBatch, Trace, open_trace
from moeprof.trace.rows import Phase, Request, TelemetrySample, TokenRows
from moeprof.trace.synthetic import synthesize_rows
from moeprof.trace.writer import TraceWriter

__all__ = [
    "Batching",
    "EditResult",
    "LayerBatch",
    "MergeResult",
    "Phase",
    "Request",
    "TelemetrySample",
    "TokenRows",
    "Trace",
    "TraceInfo",
    "TraceWriter",
    "describe_trace",
    "merge_traces",
    "migrate_trace",
    "open_trace",
    "rebatch",
    "redact_trace",
    "shorten_labels",
    "slice_trace",
    "synthesize_rows",
    "validate_trace",
    "write_counts",
]
