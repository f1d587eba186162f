"""Which experts could go, be merged or be adapted, as far as a recording of choices tells."""

from moeprof.analysis.pruning.analyze import PruningResult, analyze_pruning
from moeprof.analysis.pruning.coverage import PruningRow
from moeprof.analysis.pruning.merging import MergeHints
from moeprof.analysis.pruning.targets import AdapterTargets, choose_experts

__all__ = [
    "AdapterTargets",
    "MergeHints",
    "PruningResult",
    "PruningRow",
    "analyze_pruning",
    "choose_experts",
]
