"""From a projection to a decision: which deployment, why, and how to start it."""

from moeprof.projection.advice.advise import Advice, advise_deployment
from moeprof.projection.advice.commands import LaunchCommand, launch_command
from moeprof.projection.advice.consumer import (
    Machine,
    MachineTable,
    consumer_machines,
    try_machines,
)
from moeprof.projection.advice.nearest import Nearest
from moeprof.projection.advice.option import Option
from moeprof.projection.advice.targets import LatencyTargets, plan_traffic
from moeprof.projection.advice.tornado import TornadoBar, tornado_bars
from moeprof.projection.advice.total_cost import Comparison, ModelCost, compare_models

__all__ = [
    "Advice",
    "Comparison",
    "LatencyTargets",
    "LaunchCommand",
    "Machine",
    "MachineTable",
    "ModelCost",
    "Nearest",
    "Option",
    "TornadoBar",
    "advise_deployment",
    "compare_models",
    "consumer_machines",
    "launch_command",
    "plan_traffic",
    "tornado_bars",
    "try_machines",
]
