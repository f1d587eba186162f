"""Seconds of one engine step: its work at the machine's peaks, times constants that were fitted."""

from moeprof.projection.step.batch import Batch
from moeprof.projection.step.groups import groups_of
from moeprof.projection.step.loads import EvenLoads, ExpertLoads, RoutedLoads, recorded_loads
from moeprof.projection.step.model import StepModel, step_model
from moeprof.projection.step.terms import OPERATIONS, TERMS

__all__ = [
    "OPERATIONS",
    "TERMS",
    "Batch",
    "EvenLoads",
    "ExpertLoads",
    "RoutedLoads",
    "StepModel",
    "groups_of",
    "recorded_loads",
    "step_model",
]
