"""Solvers that look at tokens and at windows, not at the summed load alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.placement import Aim, Topology, measure_traffic, place_trace, solve_placement
from moeprof.trace import open_trace
from tests.placement.traces import routed
from tests.recordings import SHIPPED

EIGHT = Topology.even(8, 16, nodes=2)


def planted(groups: int, tokens: int = 800) -> NDArray[np.int64]:
    """[tokens, 1, 2] ids: both experts of a token are of one of `groups`, at random places."""
    draw = np.random.default_rng(2)
    member = draw.permutation(16).reshape(groups, -1)
    group = draw.integers(groups, size=tokens)
    pick = np.argsort(draw.random((tokens, member.shape[1])), axis=1)[:, :2]
    return member[group[:, None], pick][:, None]


def load_of(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.bincount(ids.ravel(), minlength=16)[None]


def test_experts_that_tokens_use_together_share_a_gpu() -> None:
    ids = planted(8)
    load = load_of(ids)
    found = solve_placement(
        load, EIGHT, solver="coactivation", routing=[ids[:, 0]], max_imbalance=1.3
    )
    assert measure_traffic(routed(ids, 16), found).gpus_per_token == 1.0
    assert found.imbalance(load) <= 1.3
    balanced = solve_placement(load, EIGHT)
    assert measure_traffic(routed(ids, 16), balanced).gpus_per_token > 1.8


def test_experts_that_tokens_use_together_share_a_node() -> None:
    ids = planted(2)
    load = load_of(ids)
    found = solve_placement(load, EIGHT, solver="node_aware", routing=[ids[:, 0]])
    assert measure_traffic(routed(ids, 16), found).nodes_per_token == 1.0
    assert found.imbalance(load) <= 1.05


@pytest.mark.parametrize("most", [1.02, 1.2])
def test_the_imbalance_stays_within_its_bound(most: float) -> None:
    trace, topology = open_trace(SHIPPED), Topology.even(8, 72)
    found, balanced = (
        place_trace(trace, topology, solver=solver, rounds=20, max_imbalance=most)
        for solver in ("coactivation", "greedy")
    )
    assert found.imbalance_fit <= most
    assert found.bytes_between_gpus_per_token is not None
    assert balanced.bytes_between_gpus_per_token is not None
    assert found.bytes_between_gpus_per_token < balanced.bytes_between_gpus_per_token


def test_even_windows_hold_better_than_an_even_sum() -> None:
    draw = np.random.default_rng(4)
    kind = np.repeat(np.arange(4), 4)  # experts of a kind are busy at the same time
    busy = draw.dirichlet(np.full(4, 0.5), size=40)
    windows = np.rint(1000 * busy[:, kind] * draw.uniform(0.8, 1.2, (40, 16)))[:, None]
    past, later = windows[:20], windows[20:]
    topology = Topology.even(4, 16)

    def waited(**options: object) -> float:
        placement = solve_placement(past.sum(axis=0), topology, **options)  # type: ignore[arg-type]
        return sum(float(placement.rank_load(window).max()) for window in later)

    assert waited(windows=past) < 0.8 * waited()


def test_moves_have_their_price() -> None:
    load = np.random.default_rng(0).lognormal(0, 1, (2, 32))
    topology = Topology.even(4, 36)
    before = solve_placement(load, topology, solver="linear")
    free, dear = (
        solve_placement(load, topology, before=before, max_imbalance=99, aim=Aim(moves=price))
        for price in (0.0, 2.0)
    )
    assert dear.moved_slots(before) < free.moved_slots(before)


def test_node_aware_needs_nodes() -> None:
    with pytest.raises(InputError, match="give 2 or more"):
        solve_placement(np.ones((1, 4)), Topology((2, 2)), solver="node_aware")
