"""A serving engine under load: requests in, distributions of latency out."""

from moeprof.projection.serving.engine_policy import (
    Admission,
    EnginePolicy,
    Victim,
    engine_policy,
)
from moeprof.projection.serving.load import Load, make_load
from moeprof.projection.serving.outcome import ServingOutcome, Targets
from moeprof.projection.serving.request_file import read_requests
from moeprof.projection.serving.requests import Request, poisson_arrivals, uniform_requests
from moeprof.projection.serving.simulation import simulate_serving
from moeprof.projection.serving.step_grid import StepGrid
from moeprof.projection.serving.workload import Distribution, Workload, workload, workload_names

__all__ = [
    "Admission",
    "Distribution",
    "EnginePolicy",
    "Load",
    "Request",
    "ServingOutcome",
    "StepGrid",
    "Targets",
    "Victim",
    "Workload",
    "engine_policy",
    "make_load",
    "poisson_arrivals",
    "read_requests",
    "simulate_serving",
    "uniform_requests",
    "workload",
    "workload_names",
]
