"""Solvers that balance and never put an expert twice on a GPU: `greedy` packs, `best` searches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moeprof.placement.bounds import lower_bound_by_layer
from moeprof.placement.solvers.problem import Map, Problem
from moeprof.placement.topology import Topology

if TYPE_CHECKING:
    from moeprof.placement.solvers.kernels import Layer


def greedy(problem: Problem) -> Map:
    """Replica counts by water-filling, then the heaviest replica first to the least loaded GPU."""
    return problem.by_layer(lambda layer: _greedy(problem.load[layer], problem.topology).slot)


def best(problem: Problem) -> Map:
    """Replica counts and packing together: `greedy`, then iterated local search.

    With `max_imbalance` the search stops there. With a map `before` it starts from that map, and
    so moves little; else from `greedy`.
    """
    from moeprof.placement.solvers.kernels import improve

    enough = _enough(problem)

    def solve(row: int) -> NDArray[np.int64]:
        layer = _start(problem, row)
        improve(layer, problem.rounds, enough[row], problem.seed * problem.layers + row)
        return layer.slot

    return problem.by_layer(solve)


def _enough(problem: Problem) -> NDArray[np.float64]:
    """[layers] the load of the busiest GPU at which a search may stop."""
    bound = lower_bound_by_layer(problem.load, problem.topology)
    if problem.max_imbalance is None:
        return bound
    mean = problem.load.sum(axis=1) / problem.topology.gpus
    enough: NDArray[np.float64] = np.maximum(bound, problem.max_imbalance * mean)
    return enough


def _start(problem: Problem, row: int) -> Layer:
    if problem.before is None:
        return _greedy(problem.load[row], problem.topology)
    return placed(problem.load[row], problem.before.physical_to_logical_map[row], problem.topology)


def _greedy(weight: NDArray[np.float64], topology: Topology) -> Layer:
    from moeprof.placement.solvers.kernels import replicate

    count = replicate(weight, topology.first_slot(), topology.is_even)
    return packed(weight, count, topology)


def packed(weight: NDArray[np.float64], count: NDArray[np.int64], topology: Topology) -> Layer:
    """One layer with `count` [experts] replicas, heaviest first to the least loaded GPU."""
    from moeprof.placement.solvers.kernels import pack

    layer = _new_layer(weight, count, topology)
    pack(layer)
    return layer


def placed(weight: NDArray[np.float64], slot: NDArray[np.int64], topology: Topology) -> Layer:
    """One layer with the experts `slot` [slots] where they stand; none twice on a GPU."""
    from moeprof.placement.solvers.kernels import weigh

    layer = _new_layer(weight, np.bincount(slot, minlength=len(weight)), topology)
    layer.slot[:] = slot
    layer.held[layer.rank, slot] = True
    weigh(layer)
    return layer


def _new_layer(weight: NDArray[np.float64], count: NDArray[np.int64], topology: Topology) -> Layer:
    from moeprof.placement.solvers.kernels import Layer

    return Layer(
        np.array(weight, np.float64),
        topology.first_slot(),
        topology.rank_of_slot(),
        np.zeros(topology.slots_in_all, np.int64),
        np.array(count, np.int64),
        weight / count,
        np.zeros((topology.gpus, len(weight)), np.bool_),
        np.zeros(topology.gpus),
    )
