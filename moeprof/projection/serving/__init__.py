"""A serving engine under load: requests in, distributions of latency out."""

from moeprof.projection.serving.engine_policy import (
    Admission,
    EnginePolicy,
    Victim,
    engine_policy,
)
from moeprof.projection.serving.outcome import ServingOutcome, Targets
from moeprof.projection.serving.requests import Request, poisson_arrivals, uniform_requests
from moeprof.projection.serving.simulation import simulate_serving
from moeprof.projection.serving.step_grid import StepGrid

__all__ = [
    "Admission",
    "EnginePolicy",
    "Request",
    "ServingOutcome",
    "StepGrid",
    "Targets",
    "Victim",
    "engine_policy",
    "poisson_arrivals",
    "simulate_serving",
    "uniform_requests",
]
