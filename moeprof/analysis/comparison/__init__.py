"""Two recordings or results side by side: what differs, how sure that is, how far they agree."""

from moeprof.analysis.comparison.checkpoints import SaturationResult, router_saturation
from moeprof.analysis.comparison.compare import agree, compare_traces
from moeprof.analysis.comparison.conditions import check_conditions
from moeprof.analysis.comparison.documents import (
    DocumentComparison,
    compare_documents,
    read_document,
)
from moeprof.analysis.comparison.measures import measures_of
from moeprof.analysis.comparison.results import Agreement, Alignment, Difference, TraceComparison

__all__ = [
    "Agreement",
    "Alignment",
    "Difference",
    "DocumentComparison",
    "SaturationResult",
    "TraceComparison",
    "agree",
    "check_conditions",
    "compare_documents",
    "compare_traces",
    "measures_of",
    "read_document",
    "router_saturation",
]
