"""Which GPU holds which expert: solvers, their judge, and the engines' own map files."""

from moeprof.placement.placement import Placement
from moeprof.placement.plan import Plan, read_plan, write_plan
from moeprof.placement.topology import Topology

__all__ = [
    "Placement",
    "Plan",
    "Topology",
    "read_plan",
    "write_plan",
]
