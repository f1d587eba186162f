"""From a projection to a decision: which deployment, why, and how to start it."""

from moeprof.projection.advice.advise import Advice, advise_deployment
from moeprof.projection.advice.commands import LaunchCommand, launch_command
from moeprof.projection.advice.nearest import Nearest
from moeprof.projection.advice.option import Option
from moeprof.projection.advice.targets import LatencyTargets, plan_traffic

__all__ = [
    "Advice",
    "LatencyTargets",
    "LaunchCommand",
    "Nearest",
    "Option",
    "advise_deployment",
    "launch_command",
    "plan_traffic",
]
