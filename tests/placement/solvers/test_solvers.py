"""Laws of every solver, what the searching ones reach, and what is refused."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.placement import SOLVERS, Topology, lower_bound, lower_bound_by_layer, solve_placement
from tests.placement.maps import loads, placements, slow_rank_load

NEED_TOKENS = ("coactivation", "node_aware")
DISTINCT = [name for name in SOLVERS if name not in ("eplb", "milp", *NEED_TOKENS)]


@st.composite
def problems(draw: st.DrawFn) -> tuple[NDArray[np.int64], Topology]:
    """A load without empty layers, and a topology of two GPUs or more that can hold it."""
    valid = draw(placements())
    assume(valid.topology.gpus > 1)
    load = draw(loads(valid.layers, valid.experts))
    assume(load.any(axis=1).all())
    return load, valid.topology


@given(problems(), st.sampled_from(DISTINCT), st.integers(0, 3))
def test_every_map_is_valid_and_never_below_the_bound(
    problem: tuple[NDArray[np.int64], Topology], solver: str, seed: int
) -> None:
    load, topology = problem
    placed = solve_placement(load, topology, solver=solver, seed=seed)
    assert placed.duplicates == 0
    assert not list(placed.problems())
    bound = lower_bound_by_layer(load, topology)
    assert (placed.rank_load(load).max(axis=1) >= bound * (1 - 1e-9)).all()
    np.testing.assert_allclose(placed.rank_load(load), slow_rank_load(placed, load))


@given(problems())
def test_the_search_never_loses_to_packing(problem: tuple[NDArray[np.int64], Topology]) -> None:
    load, topology = problem
    packed = solve_placement(load, topology, solver="greedy").imbalance_by_layer(load)
    searched = solve_placement(load, topology, solver="best", rounds=5).imbalance_by_layer(load)
    assert (searched <= packed + 1e-9).all()


@given(problems(), st.randoms(use_true_random=False))
def test_same_arguments_same_map(
    problem: tuple[NDArray[np.int64], Topology], random: object
) -> None:
    load, topology = problem
    one, other = (solve_placement(load, topology, seed=7) for _ in range(2))
    assert one.physical_to_logical_map.tobytes() == other.physical_to_logical_map.tobytes()


def least_busiest(load: NDArray[np.int64], topology: Topology) -> float:
    """The best that any map of one layer can do: all of them are tried."""
    choices = [list(combinations(range(len(load)), count)) for count in topology.slots]
    least = float("inf")
    for held in product(*choices):
        count = np.bincount([expert for gpu in held for expert in gpu], minlength=len(load))
        if count.all():
            least = min(least, max(float((load / count)[list(gpu)].sum()) for gpu in held))
    return least


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(2, 2), (3, 2), (2, 2, 2), (3, 3, 1), (2, 1, 2)]),
    st.integers(3, 5),
    st.data(),
)
def test_small_cases_reach_the_optimum(
    slots: tuple[int, ...], experts: int, data: st.DataObject
) -> None:
    assume(max(slots) <= experts <= sum(slots))
    load = data.draw(loads(1, experts))
    assume(load.any())
    topology = Topology(slots)
    optimum = least_busiest(load[0], topology)
    assert lower_bound_by_layer(load, topology)[0] <= optimum * (1 + 1e-9)
    found = solve_placement(load, topology, rounds=2000).rank_load(load).max()
    assert found == pytest.approx(optimum)


def lognormal(spread: float, layers: int = 6) -> NDArray[np.int64]:
    share = np.random.default_rng(20261122).lognormal(0, spread, (layers, 128))
    return np.rint(1e6 * share / share.sum(axis=1, keepdims=True)).astype(np.int64)


@pytest.mark.parametrize(
    ("spread", "gpus", "redundant", "most"),
    [
        (1.0, 64, 64, 1.010),
        (1.0, 64, 128, 1.005),
        (1.0, 16, 16, 1.001),
        (1.0, 8, 8, 1.001),
        (0.5, 64, 64, 1.006),
    ],
)
def test_best_balances_skewed_layers(spread: float, gpus: int, redundant: int, most: float) -> None:
    load = lognormal(spread)
    placed = solve_placement(load, Topology.even(gpus, 128 + redundant))
    assert placed.imbalance(load) <= most
    assert placed.duplicates == 0


def test_without_redundancy_the_hottest_expert_is_the_bound() -> None:
    load = lognormal(1.0)
    topology = Topology.even(64, 128)
    bound = lower_bound(load, topology)
    assert bound > 1.5
    assert solve_placement(load, topology).imbalance(load) == pytest.approx(bound, rel=1e-6)


def test_a_search_that_starts_from_a_map_moves_little() -> None:
    load = lognormal(1.0)
    topology = Topology.even(64, 192)
    before = solve_placement(load, topology)
    later = np.rint(load * np.random.default_rng(1).lognormal(0, 0.1, load.shape))
    anew = solve_placement(later, topology)
    moved = solve_placement(later, topology, before=before, max_imbalance=1.05)
    assert before.imbalance_by_layer(later).min() > 1.05
    assert moved.imbalance_by_layer(later).max() <= 1.05
    assert moved.moved_slots(before) < anew.moved_slots(before) / 4


def test_linear_and_round_robin_of_an_example() -> None:
    topology, load = Topology.even(4, 12), np.ones((2, 8))
    rows = solve_placement(load, topology, solver="linear").physical_to_logical_map
    assert rows[1].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]
    rows = solve_placement(load, topology, solver="round_robin").physical_to_logical_map
    assert rows[0].tolist() == [0, 4, 3, 1, 5, 0, 2, 6, 1, 3, 7, 2]


@pytest.mark.parametrize(
    ("load", "topology", "words"),
    [
        (np.ones((2, 4)), Topology((4,)), "one GPU holds every expert"),
        (np.ones((2, 4)), Topology((1, 1)), "2 slots for 4 experts"),
        (np.ones((2, 4)), Topology((5, 1)), "GPU 0 has 5 slots for 4 experts"),
        (np.ones(4), Topology((2, 2)), r"shape \(4,\)"),
        (np.zeros((0, 4)), Topology((2, 2)), r"shape \(0, 4\)"),
        (np.array([[1, 1, 1, 1], [1, 2, np.nan, 4]]), Topology((2, 2)), "layer 1, expert 2 is not"),
        (np.array([[1, 1, 1, np.inf]]), Topology((2, 2)), "layer 0, expert 3 is not finite"),
        (np.array([[1, -1, 1, 1]]), Topology((2, 2)), "layer 0, expert 1 is negative: -1"),
        (np.array([[1, 1, 1, 1], [0, 0, 0, 0]]), Topology((2, 2)), "layer 1 has no load"),
        (np.array([["a", "b"]]), Topology((1, 1)), "not an array of numbers"),
    ],
)
def test_what_cannot_be_placed_is_refused_in_a_line(
    load: NDArray[np.float64], topology: Topology, words: str
) -> None:
    for call in (solve_placement, lower_bound):
        with pytest.raises(InputError, match=words) as caught:
            call(load, topology)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("solver", NEED_TOKENS)
def test_solvers_of_traffic_need_tokens(solver: str) -> None:
    with pytest.raises(InputError, match="needs tokens, not counts alone"):
        solve_placement(np.ones((2, 4)), Topology((2, 2), nodes=2), solver=solver)


def test_windows_of_another_shape_are_refused() -> None:
    load, topology = np.ones((2, 4)), Topology((2, 2))
    with pytest.raises(InputError, match=r"windows of shape \(2, 4\) for a load of shape"):
        solve_placement(load, topology, windows=load)
    with pytest.raises(InputError, match="negative"):
        solve_placement(load, topology, windows=np.stack([-load, 3 * load]))


def test_other_wrong_arguments_are_refused() -> None:
    load, topology = np.ones((2, 4)), Topology((2, 2))
    before = solve_placement(load, topology)
    with pytest.raises(InputError, match="no solver is called 'lpt': linear"):
        solve_placement(load, topology, solver="lpt")
    with pytest.raises(InputError, match="rounds = -1"):
        solve_placement(load, topology, rounds=-1)
    with pytest.raises(InputError, match="max_imbalance = nan"):
        solve_placement(load, topology, max_imbalance=float("nan"))
    with pytest.raises(InputError, match="other slots"):
        solve_placement(load, Topology((3, 1)), before=before)
    with pytest.raises(InputError, match="2 layers x 4 experts, the load 1 x 4"):
        solve_placement(load[:1], topology, before=before)
