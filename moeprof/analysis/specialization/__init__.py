"""Do domains, tokens, positions and phases use different experts? A file an idea."""

from moeprof.analysis.specialization.analyze import analyze_specialization
from moeprof.analysis.specialization.divergence import domain_divergence, shuffled_divergence
from moeprof.analysis.specialization.prefixes import (
    SharedPrefix,
    SharedPrefixes,
    find_shared_prefixes,
)
from moeprof.analysis.specialization.results import (
    Divergence,
    LayerSpecialization,
    SpecializationResult,
)
from moeprof.analysis.specialization.specialists import Specialist

__all__ = [
    "Divergence",
    "LayerSpecialization",
    "SharedPrefix",
    "SharedPrefixes",
    "Specialist",
    "SpecializationResult",
    "analyze_specialization",
    "domain_divergence",
    "find_shared_prefixes",
    "shuffled_divergence",
]
