"""From model and hardware to a deployment: memory per rank, speed with its band, and cost."""

from moeprof.projection.advice import (
    Advice,
    Comparison,
    LatencyTargets,
    MachineTable,
    ModelCost,
    Option,
    TornadoBar,
    advise_deployment,
    compare_models,
    launch_command,
    plan_traffic,
    tornado_bars,
    try_machines,
)
from moeprof.projection.bounds import decode_bound, decode_read_bytes
from moeprof.projection.calibration import Measured, calibrate_laws
from moeprof.projection.closed_loop import Traffic
from moeprof.projection.deployment import ENGINES, Deployment, plan_deployment
from moeprof.projection.laws import FAMILIARITIES, Laws, shipped_laws
from moeprof.projection.memory import PREDICTION, MemoryLedger, project_memory
from moeprof.projection.parallelism import Parallelism
from moeprof.projection.project import DeploymentProjection, project_deployment
from moeprof.projection.speed import Speed, project_speed
from moeprof.projection.step import recorded_loads
from moeprof.projection.table import ProjectedTable, project_table, read_measured

__all__ = [
    "ENGINES",
    "FAMILIARITIES",
    "PREDICTION",
    "Advice",
    "Comparison",
    "Deployment",
    "DeploymentProjection",
    "LatencyTargets",
    "Laws",
    "MachineTable",
    "Measured",
    "MemoryLedger",
    "ModelCost",
    "Option",
    "Parallelism",
    "ProjectedTable",
    "Speed",
    "TornadoBar",
    "Traffic",
    "advise_deployment",
    "calibrate_laws",
    "compare_models",
    "decode_bound",
    "decode_read_bytes",
    "launch_command",
    "plan_deployment",
    "plan_traffic",
    "project_deployment",
    "project_memory",
    "project_speed",
    "project_table",
    "read_measured",
    "recorded_loads",
    "shipped_laws",
    "tornado_bars",
    "try_machines",
]
