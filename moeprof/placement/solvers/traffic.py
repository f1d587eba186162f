"""Solvers that send a token to few places, at a bounded imbalance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.placement.annealing import Aim
from moeprof.placement.solvers.problem import Map, Problem
from moeprof.placement.solvers.search import annealed, balanced, enough_load, placed

MAX_IMBALANCE = 1.05  # where none is given
_WALL = 1e6  # what a GPU that has 1 x the mean too much costs, beside one place a token: a wall


def coactivation(problem: Problem) -> Map:
    """Experts of one token on few GPUs, while no GPU has more than `max_imbalance` of the mean."""
    return _few_places(problem, problem.aim or Aim(gpus=1.0))


def node_aware(problem: Problem) -> Map:
    """Experts of one token in few nodes and then on few GPUs, within `max_imbalance` as well."""
    if problem.topology.nodes < 2:
        raise InputError("node_aware places over nodes: give 2 or more, or take coactivation")
    return _few_places(problem, problem.aim or Aim(nodes=1.0, gpus=0.1))


def _few_places(problem: Problem, aim: Aim) -> Map:
    if problem.routing is None:
        raise InputError("this solver needs tokens, not counts alone: best and eplb do with counts")
    enough = enough_load(problem, problem.max_imbalance or MAX_IMBALANCE)
    mean = problem.load.sum(axis=1) / problem.topology.gpus
    summed = replace(problem, windows=None)

    def solve(row: int) -> NDArray[np.int64]:
        start = balanced(problem, row, enough[row]).slot
        walled = replace(aim, floor=enough[row] / mean[row], balance=_WALL * problem.topology.gpus)
        return _within(problem, row, annealed(summed, row, start, walled), enough[row])

    return problem.by_layer(solve)


def _within(
    problem: Problem, row: int, slot: NDArray[np.int64], enough: float
) -> NDArray[np.int64]:
    """[slots] the same map, but for swaps of GPUs that are still above `enough`."""
    from moeprof.placement.solvers.kernels import relieve

    layer = placed(problem.load[row], slot, problem.topology)
    relieve(layer, len(slot), enough)
    return np.asarray(layer.slot)
