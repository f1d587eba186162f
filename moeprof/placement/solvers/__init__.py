"""The solvers by name: each takes a `Problem` and returns the experts of each layer's slots."""

from collections.abc import Callable

from moeprof.placement.solvers.eplb import eplb
from moeprof.placement.solvers.milp import milp
from moeprof.placement.solvers.orders import linear, random, round_robin
from moeprof.placement.solvers.problem import Map, Problem
from moeprof.placement.solvers.search import best, greedy
from moeprof.placement.solvers.traffic import coactivation, node_aware

SOLVERS: dict[str, Callable[[Problem], Map]] = {
    "linear": linear,
    "round_robin": round_robin,
    "random": random,
    "eplb": eplb,
    "greedy": greedy,
    "best": best,
    "milp": milp,
    "coactivation": coactivation,
    "node_aware": node_aware,
}

__all__ = ["SOLVERS", "Map", "Problem"]
