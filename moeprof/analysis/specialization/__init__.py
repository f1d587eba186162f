"""Do domains, tokens, positions and phases use different experts? A file an idea."""

from moeprof.analysis.specialization.analyze import analyze_specialization
from moeprof.analysis.specialization.confidence import (
    ConfidenceResult,
    LayerConfidence,
    analyze_confidence,
)
from moeprof.analysis.specialization.divergence import domain_divergence, shuffled_divergence
from moeprof.analysis.specialization.factors import RoutingFactors, analyze_routing_factors
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
from moeprof.analysis.specialization.vocabulary import (
    LayerVocabulary,
    VocabularyExpert,
    VocabularyResult,
    analyze_vocabulary,
)
from moeprof.analysis.specialization.within import (
    LayerEffect,
    PartsEffect,
    analyze_phase,
    analyze_position,
)

__all__ = [
    "ConfidenceResult",
    "Divergence",
    "LayerConfidence",
    "LayerEffect",
    "LayerSpecialization",
    "LayerVocabulary",
    "PartsEffect",
    "RoutingFactors",
    "SharedPrefix",
    "SharedPrefixes",
    "Specialist",
    "SpecializationResult",
    "VocabularyExpert",
    "VocabularyResult",
    "analyze_confidence",
    "analyze_phase",
    "analyze_position",
    "analyze_routing_factors",
    "analyze_specialization",
    "analyze_vocabulary",
    "domain_divergence",
    "find_shared_prefixes",
    "shuffled_divergence",
]
