"""One call for every solver: load and topology in, a checked placement out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moeprof.errors import InputError
from moeprof.placement.annealing import Aim
from moeprof.placement.checks import check_load, check_topology
from moeprof.placement.placement import Placement
from moeprof.placement.solvers import SOLVERS, Problem
from moeprof.placement.topology import Topology


def solve_placement(
    load: ArrayLike,
    topology: Topology,
    *,
    solver: str = "best",
    seed: int = 0,
    rounds: int = 100,
    max_imbalance: float | None = None,
    before: Placement | None = None,
    windows: ArrayLike | None = None,
    routing: Sequence[NDArray[np.integer]] | None = None,
    aim: Aim | None = None,
    groups: int = 1,
    expert_bytes: int | None = None,
) -> Placement:
    """Which slot of `topology` holds which expert, for `load` [layers, experts] of any unit.

    `solver` is a key of `SOLVERS`. `best` searches for `rounds` a layer, stops at `max_imbalance`,
    and starts from the map `before`, so that few experts move. With `windows` [windows, layers,
    experts], counts of parts of the time, it evens each of them out, which holds better later.
    `coactivation` and `node_aware` need `routing`, the ids [tokens, top_k] that each layer's tokens
    chose; `aim` weighs balance, traffic and moves otherwise than a solver does on its own;
    `groups` of experts are for `eplb`. With `expert_bytes`, one expert's size in one layer, slots
    are held against the topology's memory. Same arguments, same map.

    Raises InputError, one line, for anything that cannot be solved; InfeasibleError on memory.
    """
    if solver not in SOLVERS:
        raise InputError(f"no solver is called '{solver}': {', '.join(SOLVERS)}")
    given = check_load(load)
    check_topology(topology, given.shape[1])
    if rounds < 0:
        raise InputError(f"rounds = {rounds}: 0 or more")
    if max_imbalance is not None and not max_imbalance >= 1:
        raise InputError(f"max_imbalance = {max_imbalance}: 1 is perfect balance, give more")
    if before is not None:
        _refuse_other(before, given, topology)
    problem = Problem(
        given,
        topology,
        seed,
        groups,
        rounds,
        max_imbalance,
        before,
        _check_windows(windows, given),
        aim,
        routing,
    )
    return Placement(
        SOLVERS[solver](problem), given.shape[1], topology, solver == "eplb", expert_bytes
    )


def _check_windows(
    windows: ArrayLike | None, load: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Windows [windows, layers, experts] as floats. Raises InputError for another array."""
    if windows is None:
        return None
    given = np.asarray(windows, np.float64)
    if given.ndim != 3 or given.shape[1:] != load.shape:
        raise InputError(f"windows of shape {given.shape} for a load of shape {load.shape}")
    check_load(given.sum(axis=0))
    if not (given >= 0).all():
        raise InputError("the load of a window is negative or not a number")
    return given


def _refuse_other(before: Placement, load: NDArray[np.float64], topology: Topology) -> None:
    """Raises InputError where the map in use is of another model or machine."""
    if before.topology.slots != topology.slots:
        raise InputError("the map before has other slots: move from it on the same topology")
    if (before.layers, before.experts) != load.shape:
        raise InputError(
            f"the map before has {before.layers} layers x {before.experts} experts, "
            f"the load {load.shape[0]} x {load.shape[1]}"
        )
    if before.duplicates:
        raise InputError(f"the map before holds {before.duplicates} experts twice on a GPU")
