"""Certificates: the optimum of cases that are small enough to try every map."""

from __future__ import annotations

import numpy as np
import pytest

from moeprof.errors import InputError
from moeprof.placement import Topology, solve_placement
from moeprof.placement.solvers.milp import proven_bound_by_layer
from tests.placement.solvers.test_solvers import least_busiest

CASES = [((2, 2), 3), ((2, 2, 2), 4), ((3, 2, 1), 5), ((3, 3), 6), ((2, 2, 2), 5)]


@pytest.mark.parametrize(("slots", "experts"), CASES)
def test_the_bound_and_the_map_are_the_optimum(slots: tuple[int, ...], experts: int) -> None:
    topology = Topology(slots)
    load = np.random.default_rng(experts).integers(1, 60, (3, experts))
    optimum = [least_busiest(row, topology) for row in load]
    placed = solve_placement(load, topology, solver="milp", rounds=0)
    np.testing.assert_allclose(placed.rank_load(load).max(axis=1), optimum, rtol=1e-5)
    np.testing.assert_allclose(proven_bound_by_layer(load, topology), optimum, rtol=1e-5)


def test_best_is_proven_optimal_on_a_larger_case() -> None:
    load = np.random.default_rng(3).lognormal(0, 1, (1, 9))
    topology = Topology.even(3, 12)
    bound = proven_bound_by_layer(load, topology)
    best = solve_placement(load, topology, rounds=2000).rank_load(load).max(axis=1)
    assert (best >= bound * (1 - 1e-9)).all()
    np.testing.assert_allclose(best, bound, rtol=2e-3)


def test_large_cases_are_refused() -> None:
    load, topology = np.ones((1, 128)), Topology.even(64, 192)
    with pytest.raises(InputError, match="milp is for small cases: 128 experts on 64 GPUs"):
        solve_placement(load, topology, solver="milp")
    with pytest.raises(InputError, match="best takes any size"):
        proven_bound_by_layer(load, topology)
