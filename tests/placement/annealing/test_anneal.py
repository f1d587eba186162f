"""The annealer's map against its cost, written from the formula."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moeprof.placement import Aim, Placement, Topology
from moeprof.placement.annealing import anneal_map, signal_share
from tests.placement.maps import placements


def slow_cost(
    slot: list[int],
    windows: NDArray[np.float64],
    topology: Topology,
    aim: Aim,
    tokens: NDArray[np.int64],
    before: list[int],
) -> float:
    """The formula in the docstring of `anneal`, in plain loops."""
    rank = topology.rank_of_slot().tolist()
    node = [topology.node_of_rank()[r] for r in rank]
    cost = 0.0
    half = [0.5 / len(windows)] * len(windows) + [0.5]
    for weight, window in zip(half, [*windows, windows.sum(axis=0)], strict=True):
        load = [0.0] * topology.gpus
        for place, expert in zip(rank, slot, strict=True):
            load[place] += window[expert] / slot.count(expert) / (window.sum() / topology.gpus)
        over = [max(0.0, x - aim.floor) ** 4 for x in load]
        cost += aim.balance * weight * sum(over) / topology.gpus
    for weight, places in ((aim.gpus, rank), (aim.nodes, node)):
        for ids in tokens.tolist():
            choices = [[p for p, e in zip(places, slot, strict=True) if e == i] for i in ids]
            reached = [len(set(chosen)) for chosen in product(*choices)]
            cost += weight * sum(reached) / len(reached) / len(tokens)
    held = {*zip(rank, before, strict=True)}
    moved = len({*zip(rank, slot, strict=True)} - held)
    return cost + aim.moves * moved / len(slot)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Placement, NDArray[np.float64], Aim, NDArray[np.int64]]:
    placement = draw(placements())
    row = st.lists(st.integers(0, 50), min_size=placement.experts, max_size=placement.experts)
    windows = np.array(draw(st.lists(row.filter(any), min_size=1, max_size=3)), float)
    top_k = min(2, placement.experts)
    choice = st.permutations(range(placement.experts)).map(lambda order: order[:top_k])
    tokens = np.array(draw(st.lists(choice, min_size=1, max_size=3)))
    weights = st.sampled_from([0.0, 0.3, 1.0])
    aim = Aim(*(draw(weights) for _ in range(5)))
    return placement, windows, aim, tokens


@settings(max_examples=40)
@given(cases(), st.integers(0, 2))
def test_a_map_stays_valid_and_never_costs_more(
    case: tuple[Placement, NDArray[np.float64], Aim, NDArray[np.int64]], seed: int
) -> None:
    placement, windows, aim, tokens = case
    start = placement.physical_to_logical_map[0]
    found = anneal_map(
        start,
        windows,
        placement.topology,
        aim,
        proposals=200,
        seed=seed,
        tokens=tokens,
        before=start,
    )
    assert not list(Placement(found[None], placement.experts, placement.topology).problems())
    costs = [
        slow_cost(slot.tolist(), windows, placement.topology, aim, tokens, start.tolist())
        for slot in (start, found)
    ]
    assert costs[1] <= costs[0] + 1e-9


def every_map(topology: Topology, experts: int) -> list[list[int]]:
    choices = [list(combinations(range(experts), count)) for count in topology.slots]
    maps = [[expert for gpu in held for expert in gpu] for held in product(*choices)]
    return [slot for slot in maps if len(set(slot)) == experts]


@settings(max_examples=15)
@given(
    st.sampled_from([Topology((2, 2)), Topology((2, 2, 1, 1), nodes=2), Topology((3, 2))]),
    st.lists(st.integers(1, 50), min_size=8, max_size=8),
    st.sampled_from([Aim(), Aim(gpus=1.0, balance=0.2), Aim(nodes=1.0, gpus=0.2, moves=0.1)]),
)
def test_small_cases_reach_the_cheapest_map(topology: Topology, loads: list[int], aim: Aim) -> None:
    windows = np.array(loads, float).reshape(2, 4)
    tokens = np.array([[0, 1], [0, 1], [2, 3], [1, 2]])
    start = np.array([slot for slot in range(topology.slots_in_all)]) % 4

    def cost(slot: list[int]) -> float:
        return slow_cost(slot, windows, topology, aim, tokens, start.tolist())

    found = min(
        cost(
            anneal_map(
                start,
                windows,
                topology,
                aim,
                proposals=3000,
                seed=seed,
                tokens=tokens,
                before=start,
            ).tolist()
        )
        for seed in range(3)
    )
    assert found == pytest.approx(min(map(cost, every_map(topology, 4))))


def test_chance_is_told_from_signal() -> None:
    draw = np.random.default_rng(8)
    share = draw.dirichlet(np.ones(40))
    alike = draw.multinomial(3000, share, size=16).astype(float)
    assert signal_share(alike) < 0.15
    other = np.stack([draw.multinomial(3000, draw.dirichlet(20 * share)) for _ in range(16)])
    assert signal_share(other.astype(float)) > 0.9
    assert signal_share(alike[:1]) == 0.0


def test_the_same_seed_gives_the_same_map() -> None:
    topology = Topology.even(4, 20)
    windows = np.random.default_rng(0).integers(1, 99, (4, 16)).astype(float)
    one, other = (
        anneal_map(np.arange(20) % 16, windows, topology, Aim(), proposals=500, seed=5)
        for _ in range(2)
    )
    assert one.tobytes() == other.tobytes()
