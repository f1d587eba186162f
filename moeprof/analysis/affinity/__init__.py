"""Affinity: experts that tokens use together in a layer, and from one layer to the next."""

from moeprof.analysis.affinity.analyze import analyze_affinity
from moeprof.analysis.affinity.result import (
    AffinityResult,
    ExpertPair,
    LayerAffinity,
    LayerTransition,
)

__all__ = [
    "AffinityResult",
    "ExpertPair",
    "LayerAffinity",
    "LayerTransition",
    "analyze_affinity",
]
