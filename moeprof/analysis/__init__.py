"""Pure functions from a trace to a result: load, locality, affinity, specialization, sampling."""

from moeprof.analysis.affinity import AffinityResult, analyze_affinity
from moeprof.analysis.counting import expert_load
from moeprof.analysis.evenness import LayerLoad
from moeprof.analysis.load import LoadResult, analyze_load
from moeprof.analysis.locality import LocalityResult, analyze_locality
from moeprof.analysis.sampling import LayerSamplingError, SamplingError, sampling_error
from moeprof.analysis.specialization import (
    RoutingFactors,
    SpecializationResult,
    analyze_routing_factors,
    analyze_specialization,
    find_shared_prefixes,
)

__all__ = [
    "AffinityResult",
    "LayerLoad",
    "LayerSamplingError",
    "LoadResult",
    "LocalityResult",
    "RoutingFactors",
    "SamplingError",
    "SpecializationResult",
    "analyze_affinity",
    "analyze_load",
    "analyze_locality",
    "analyze_routing_factors",
    "analyze_specialization",
    "expert_load",
    "find_shared_prefixes",
    "sampling_error",
]
