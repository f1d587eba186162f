"""Where a step's tokens go: distinct experts and the busiest rank's load, from a stated model of
routing or from a recording, through a placement, and carried over to another model.
"""

from moeprof.projection.routing.gib import GibUse, GibValue, offloaded_speed, value_of_gib
from moeprof.projection.routing.kernel_time import moe_seconds
from moeprof.projection.routing.power_law import PowerLawRouting
from moeprof.projection.routing.recorded import TraceRouting
from moeprof.projection.routing.sensitivity import (
    RoutingCell,
    RoutingSensitivity,
    SensitivityRow,
    judged_windows,
    study_routing,
)
from moeprof.projection.routing.speeds import (
    PlacedSpeed,
    mix_speeds,
    redundancy_speeds,
    tok_s_of,
)
from moeprof.projection.routing.step_load import (
    RoutingModel,
    Seconds,
    Shape,
    StepLoad,
    mixed_load,
)
from moeprof.projection.routing.transfer import (
    METHODS,
    TransferredRouting,
    check_routing,
    routing_for,
)
from moeprof.projection.routing.uniform import UniformRouting, shape_of

__all__ = [
    "METHODS",
    "GibUse",
    "GibValue",
    "PlacedSpeed",
    "PowerLawRouting",
    "RoutingCell",
    "RoutingModel",
    "RoutingSensitivity",
    "Seconds",
    "SensitivityRow",
    "Shape",
    "StepLoad",
    "TraceRouting",
    "TransferredRouting",
    "UniformRouting",
    "check_routing",
    "judged_windows",
    "mix_speeds",
    "mixed_load",
    "moe_seconds",
    "offloaded_speed",
    "redundancy_speeds",
    "routing_for",
    "shape_of",
    "study_routing",
    "tok_s_of",
    "value_of_gib",
]
