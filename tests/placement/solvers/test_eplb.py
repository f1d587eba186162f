"""The same maps as DeepSeek's EPLB."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.placement import Topology, solve_placement
from tests.placement.solvers.eplb_oracle import deepseek_eplb, slow_eplb

# Input and expected map of the README of github.com/deepseek-ai/EPLB.
README_LOAD = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
README_MAP = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]
CASES = 1000


def cases(ties: bool) -> list[tuple[NDArray[np.int64], int, int, int, int]]:
    """(load, slots, groups, nodes, gpus) of all shapes; without ties, loads are distinct."""
    draw = np.random.default_rng(6)
    found = []
    while len(found) < CASES:
        nodes, per_node, groups_per_node, size = draw.integers(1, 5, size=4)
        groups, gpus = int(nodes * groups_per_node), int(nodes * per_node)
        experts = int(groups * size)
        per_gpu = -(-experts // gpus) + int(draw.integers(0, 3))
        load = draw.integers(0, 4, (2, experts)) if ties else distinct(draw, experts)
        asked_nodes = int(nodes) if draw.random() < 0.8 else groups + 1  # the latter: global mode
        if gpus % asked_nodes:
            asked_nodes = int(nodes)
        case = (load, gpus * per_gpu, groups, asked_nodes, gpus)
        if placeable(case):
            found.append(case)
    return found


def distinct(draw: np.random.Generator, experts: int) -> NDArray[np.int64]:
    """Two layers of loads that differ and are large, so that replicas hardly ever tie either."""
    return np.stack([draw.choice(np.arange(1, 1_000_003), experts, False) for _ in range(2)])


def ours(
    load: NDArray[np.int64], slots: int, groups: int, nodes: int, gpus: int
) -> list[list[int]]:
    topology = Topology.even(gpus, slots, nodes)
    solved = solve_placement(load, topology, solver="eplb", groups=groups)
    return solved.physical_to_logical_map.tolist()  # type: ignore[no-any-return]


def placeable(case: tuple[NDArray[np.int64], int, int, int, int]) -> bool:
    load, slots, _, _, gpus = case
    return gpus > 1 and slots // gpus <= load.shape[1] and bool(load.any(axis=1).all())


def test_the_readme_example() -> None:
    assert ours(np.array(README_LOAD), 16, 4, 2, 8) == README_MAP


def test_random_maps_without_ties_are_those_of_the_oracle() -> None:
    for load, *shape in cases(ties=False)[:300]:
        assert ours(load, *shape) == [slow_eplb(row, *shape) for row in load.tolist()]


def test_random_maps_without_ties_are_those_of_deepseek() -> None:
    module = deepseek_eplb()
    import torch

    for load, *shape in cases(ties=False):
        theirs, _, _ = module.rebalance_experts(torch.from_numpy(load), *shape)
        assert ours(load, *shape) == theirs.tolist()


def rank_loads(rows: list[list[int]], load: NDArray[np.int64], gpus: int) -> list[list[float]]:
    """Loads of GPUs, sorted, as ties may give a GPU's part to another."""
    found = []
    for row, weights in zip(rows, load, strict=True):
        slots = [float(weights[expert]) / row.count(expert) for expert in row]
        size = len(row) // gpus
        found.append(sorted(round(sum(slots[g * size : (g + 1) * size]), 4) for g in range(gpus)))
    return found


def test_with_ties_the_busiest_gpu_is_as_busy_as_deepseeks() -> None:
    module = deepseek_eplb()
    import torch

    for load, slots, groups, nodes, gpus in cases(ties=True):
        theirs, _, _ = module.rebalance_experts(torch.from_numpy(load), slots, groups, nodes, gpus)
        mine = ours(load, slots, groups, nodes, gpus)
        assert rank_loads(mine, load, gpus) == rank_loads(theirs.tolist(), load, gpus)


def test_what_it_does_not_know_is_refused() -> None:
    with pytest.raises(InputError, match="same number of slots"):
        solve_placement(np.ones((1, 4)), Topology((3, 1)), solver="eplb")
    with pytest.raises(InputError, match="4 experts do not divide over 3 groups"):
        solve_placement(np.ones((1, 4)), Topology((2, 2)), solver="eplb", groups=3)
