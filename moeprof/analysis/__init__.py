"""Pure functions from a trace to a result: load, specialization."""

from moeprof.analysis.counting import expert_load
from moeprof.analysis.load import LayerLoad, LoadResult, analyze_load
from moeprof.analysis.specialization import SpecializationResult, analyze_specialization

__all__ = [
    "LayerLoad",
    "LoadResult",
    "SpecializationResult",
    "analyze_load",
    "analyze_specialization",
    "expert_load",
]
