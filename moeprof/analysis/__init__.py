"""Pure functions from a trace to a result: load, locality, affinity, specialization, sampling."""

from moeprof.analysis.affinity import AffinityResult, analyze_affinity
from moeprof.analysis.counting import expert_load
from moeprof.analysis.load import LayerLoad, LoadResult, analyze_load
from moeprof.analysis.locality import LocalityResult, analyze_locality
from moeprof.analysis.sampling import LayerSamplingError, SamplingError, sampling_error
from moeprof.analysis.specialization import SpecializationResult, analyze_specialization

__all__ = [
    "AffinityResult",
    "LayerLoad",
    "LayerSamplingError",
    "LoadResult",
    "LocalityResult",
    "SamplingError",
    "SpecializationResult",
    "analyze_affinity",
    "analyze_load",
    "analyze_locality",
    "analyze_specialization",
    "expert_load",
    "sampling_error",
]
