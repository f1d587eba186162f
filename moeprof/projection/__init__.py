"""From model and hardware to what a deployment needs: memory per rank, and bounds on its speed."""

from moeprof.projection.bounds import decode_bound, decode_read_bytes
from moeprof.projection.memory import PREDICTION, MemoryLedger, project_memory
from moeprof.projection.parallelism import Parallelism
from moeprof.projection.project import DeploymentProjection, project_deployment

__all__ = [
    "PREDICTION",
    "DeploymentProjection",
    "MemoryLedger",
    "Parallelism",
    "decode_bound",
    "decode_read_bytes",
    "project_deployment",
    "project_memory",
]
