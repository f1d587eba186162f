"""Which GPU holds which expert: solvers, their judge, and the engines' own map files."""

from moeprof.placement.annealing import Aim
from moeprof.placement.bounds import lower_bound, lower_bound_by_layer
from moeprof.placement.place import (
    PlacementResult,
    observe_window,
    place_load,
    place_trace,
    read_load,
)
from moeprof.placement.placement import Placement
from moeprof.placement.plan import Plan, read_plan, write_plan
from moeprof.placement.solve import solve_placement
from moeprof.placement.solvers import SOLVERS
from moeprof.placement.solvers.milp import proven_bound_by_layer
from moeprof.placement.topology import Topology
from moeprof.placement.traffic import Traffic, measure_traffic

__all__ = [
    "SOLVERS",
    "Aim",
    "Placement",
    "PlacementResult",
    "Plan",
    "Topology",
    "Traffic",
    "lower_bound",
    "lower_bound_by_layer",
    "measure_traffic",
    "observe_window",
    "place_load",
    "place_trace",
    "proven_bound_by_layer",
    "read_load",
    "read_plan",
    "solve_placement",
    "write_plan",
]
