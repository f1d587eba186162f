"""From model and hardware to a deployment: memory per rank, speed with its band, and cost."""

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
    "Deployment",
    "DeploymentProjection",
    "Laws",
    "Measured",
    "MemoryLedger",
    "Parallelism",
    "ProjectedTable",
    "Speed",
    "Traffic",
    "calibrate_laws",
    "decode_bound",
    "decode_read_bytes",
    "plan_deployment",
    "project_deployment",
    "project_memory",
    "project_speed",
    "project_table",
    "read_measured",
    "recorded_loads",
    "shipped_laws",
]
