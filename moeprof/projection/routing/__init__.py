"""Where a step's tokens go: distinct experts and the busiest rank's load, from a stated model of
routing or from a recording, through a placement, and carried over to another model.
"""

from moeprof.projection.routing.power_law import PowerLawRouting
from moeprof.projection.routing.recorded import TraceRouting
from moeprof.projection.routing.step_load import (
    RoutingModel,
    Seconds,
    Shape,
    StepLoad,
    mixed_load,
)
from moeprof.projection.routing.transfer import METHODS, TransferredRouting, routing_for
from moeprof.projection.routing.uniform import UniformRouting, shape_of

__all__ = [
    "METHODS",
    "PowerLawRouting",
    "RoutingModel",
    "Seconds",
    "Shape",
    "StepLoad",
    "TraceRouting",
    "TransferredRouting",
    "UniformRouting",
    "mixed_load",
    "routing_for",
    "shape_of",
]
