"""The search for a map that is even in many loads: never worse, sound at the end, and optimal
where every map can be tried."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.placement import Placement, Topology, solve_placement
from moeprof.placement.fitting import fit_placement
from moeprof.placement.scenarios import even_in_all
from moeprof.placement.windows import split_windows
from tests.placement.maps import placements
from tests.recordings import recording


def objective(placement: Placement, scenarios: np.ndarray, power: int) -> np.ndarray:
    """[layers] mean over scenarios of imbalance to a power."""
    by_layer = np.stack([placement.imbalance_by_layer(load) for load in scenarios])
    return (by_layer**power).mean(axis=0)


@settings(max_examples=60)
@given(start=placements(), seed=st.integers(0, 20), worst=st.booleans())
def test_no_layer_gets_worse_and_the_map_stays_valid(
    start: Placement, seed: int, worst: bool
) -> None:
    rng = np.random.default_rng(seed)
    scenarios = rng.exponential(size=(5, start.layers, start.experts))
    found = even_in_all(start, scenarios, worst=worst, tries=300, seed=seed)
    assert found.duplicates == 0
    assert found.topology == start.topology
    power = 16 if worst else 1
    before, after = (objective(p, scenarios, power) for p in (start, found))
    assert (after <= before * (1 + 1e-9)).all()
    again = even_in_all(start, scenarios, worst=worst, tries=300, seed=seed)
    np.testing.assert_array_equal(found.physical_to_logical_map, again.physical_to_logical_map)


@pytest.mark.parametrize("worst", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_small_cases_reach_the_optimum_of_all_maps(seed: int, worst: bool) -> None:
    scenarios = np.random.default_rng(seed).exponential(size=(4, 1, 6))
    topology = Topology.even(3, 6)
    start = Placement(np.arange(6)[None], 6, topology)
    power = 16 if worst else 1
    least = min(
        objective(Placement(np.array([order]), 6, topology), scenarios, power)[0]
        for order in permutations(range(6))
    )
    found = even_in_all(start, scenarios, worst=worst, tries=3000)
    # a swap at a time does not always get there; on these it comes within 5 %
    assert objective(found, scenarios, power)[0] <= least * 1.05**power


def test_a_scenario_without_load_and_another_unit_change_nothing() -> None:
    scenarios = np.random.default_rng(0).exponential(size=(4, 2, 8))
    start = Placement(np.tile(np.arange(8), (2, 1)), 8, Topology.even(4, 8))
    plain = even_in_all(start, scenarios, tries=500)
    scaled = scenarios * np.array([1, 1000, 1, 8])[:, None, None]
    with_empty = np.concatenate([scaled, np.zeros((1, 2, 8))])
    np.testing.assert_array_equal(
        plain.physical_to_logical_map,
        even_in_all(start, with_empty, tries=500).physical_to_logical_map,
    )


def test_bad_scenarios_are_refused() -> None:
    start = Placement(np.arange(4)[None], 4, Topology.even(2, 4))
    with pytest.raises(InputError, match="shape"):
        even_in_all(start, np.ones((3, 2, 4)))
    with pytest.raises(InputError, match="numbers from 0"):
        even_in_all(start, np.full((3, 1, 4), np.nan))
    twice = Placement(np.array([[0, 0, 1, 2]]), 3, Topology.even(2, 4), allow_duplicates=True)
    with pytest.raises(InputError, match="twice on a GPU"):
        even_in_all(twice, np.ones((3, 1, 3)))


def test_a_later_window_is_more_even_where_the_parts_of_the_first_are() -> None:
    """Over layouts of one recording, as the benchmark shows for all."""
    trace = recording("gpt-oss-20b")
    windows = split_windows(trace)
    for gpus, redundant in ((4, 0), (8, 8), (16, 16)):
        topology = Topology.even(gpus, 32 + redundant)
        fitted = fit_placement(trace, windows, topology)
        plain = solve_placement(windows.fit_load, topology)
        assert fitted.imbalance(windows.test_load) < plain.imbalance(windows.test_load) - 0.02
