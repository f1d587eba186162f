"""Do domains, tokens, positions and phases use different experts? A file an idea."""

from moeprof.analysis.specialization.analyze import (
    LayerSpecialization,
    SpecializationResult,
    analyze_specialization,
)
from moeprof.analysis.specialization.divergence import domain_divergence, shuffled_divergence
from moeprof.analysis.specialization.specialists import Specialist

__all__ = [
    "LayerSpecialization",
    "Specialist",
    "SpecializationResult",
    "analyze_specialization",
    "domain_divergence",
    "shuffled_divergence",
]
