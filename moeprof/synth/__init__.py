"""Made-up routing that behaves like real routing: stated by targets or fitted to a recording."""

from moeprof.synth.fit import FittedRouting, fit_routing
from moeprof.synth.judge import Comparison, FitJudgement, judge_fit
from moeprof.synth.popularity import Shape, read_load
from moeprof.synth.routing import RoutingModel
from moeprof.synth.schedule import Schedule, Traffic
from moeprof.synth.targets import RoutingTargets
from moeprof.synth.write import SynthResult, synthesize_trace

__all__ = [
    "Comparison",
    "FitJudgement",
    "FittedRouting",
    "RoutingModel",
    "RoutingTargets",
    "Schedule",
    "Shape",
    "SynthResult",
    "Traffic",
    "fit_routing",
    "judge_fit",
    "read_load",
    "synthesize_trace",
]
