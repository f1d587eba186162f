"""Solvers that balance and never put an expert twice on a GPU: `greedy` packs, `best` searches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moeprof.placement.annealing import Aim, anneal_map, signal_share
from moeprof.placement.bounds import lower_bound_by_layer
from moeprof.placement.solvers.problem import Map, Problem
from moeprof.placement.topology import Topology

_PROPOSALS = 200  # of the annealer, a round, at least
_SWAPS = 64  # or one for so many pairs of slots, a round
_NOISE = 0.1  # share of the variance between windows below which they are taken for chance

if TYPE_CHECKING:
    from moeprof.placement.solvers.kernels import Layer


def greedy(problem: Problem) -> Map:
    """Replica counts by water-filling, then the heaviest replica first to the least loaded GPU."""
    return problem.by_layer(lambda layer: _greedy(problem.load[layer], problem.topology).slot)


def best(problem: Problem) -> Map:
    """Replica counts and packing together: `greedy`, then iterated local search.

    With `max_imbalance` the search stops there. With a map `before` it starts from that map, and
    so moves little; else from `greedy`. With `windows` of the load, or an `aim`, it is then
    annealed: toward even loads in every window, which keeps better than an even sum. A layer whose
    windows differ by little more than chance is left as it is.
    """
    enough = enough_load(problem, problem.max_imbalance or 1.0)

    def solve(row: int) -> NDArray[np.int64]:
        slot = balanced(problem, row, enough[row]).slot
        if problem.aim is None and not _windows_matter(problem, row):
            return slot
        return annealed(problem, row, slot, problem.aim or Aim())

    return problem.by_layer(solve)


def _windows_matter(problem: Problem, row: int) -> bool:
    """Whether a layer's windows are to be evened: few moves come before that."""
    if problem.windows is None or problem.before is not None:
        return False
    return signal_share(problem.windows[:, row]) > _NOISE


def balanced(problem: Problem, row: int, enough: float) -> Layer:
    """One layer, searched until its busiest GPU is at `enough` or the rounds are over."""
    from moeprof.placement.solvers.kernels import improve

    layer = _start(problem, row)
    improve(layer, problem.rounds, enough, seed_of(problem, row))
    return layer


def annealed(problem: Problem, row: int, slot: NDArray[np.int64], aim: Aim) -> NDArray[np.int64]:
    """[slots] one layer, annealed from the map `slot`."""
    windows = problem.load[None] if problem.windows is None else problem.windows
    before = problem.before
    return anneal_map(
        slot,
        windows[:, row],
        problem.topology,
        aim,
        proposals=max(_PROPOSALS, len(slot) ** 2 // _SWAPS) * problem.rounds,
        seed=seed_of(problem, row),
        tokens=None if problem.routing is None else problem.routing[row],
        before=None if before is None else before.physical_to_logical_map[row],
    )


def seed_of(problem: Problem, row: int) -> int:
    """Of one layer's random numbers, below 2^32."""
    return (problem.seed * problem.layers + row) % 2**32


def enough_load(problem: Problem, imbalance: float) -> NDArray[np.float64]:
    """[layers] what a GPU may have at `imbalance`; the lower bound where that is more."""
    bound = lower_bound_by_layer(problem.load, problem.topology)
    mean = problem.load.sum(axis=1) / problem.topology.gpus
    enough: NDArray[np.float64] = np.maximum(bound, imbalance * mean)
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
