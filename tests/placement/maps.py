"""Random topologies, loads and valid maps, and what a map's loads are in plain Python."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from moeprof.placement import Placement, Topology


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """One to three nodes, GPUs of unequal slots."""
    nodes = draw(st.integers(1, 3))
    gpus = nodes * draw(st.integers(1, 3))
    return Topology(tuple(draw(st.lists(st.integers(1, 4), min_size=gpus, max_size=gpus))), nodes)


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    """A valid map: each GPU holds distinct experts, each expert stands somewhere."""
    topology = draw(topologies())
    fewest = max(topology.slots)
    experts = draw(st.integers(fewest, topology.slots_in_all))
    rows = [draw(_row(topology, experts)) for _ in range(draw(st.integers(1, 3)))]
    return Placement(np.array(rows), experts, topology)


@st.composite
def _row(draw: st.DrawFn, topology: Topology, experts: int) -> list[int]:
    order = draw(st.permutations(range(experts)))
    return [order[slot % experts] for slot in range(topology.slots_in_all)]


def loads(layers: int, experts: int) -> st.SearchStrategy[NDArray[np.int64]]:
    """[layers, experts] counts, zeros among them."""
    row = st.lists(st.integers(0, 1000), min_size=experts, max_size=experts)
    return st.lists(row, min_size=layers, max_size=layers).map(np.array)


def slow_rank_load(placement: Placement, load: NDArray[np.int64]) -> list[list[float]]:
    """[layers][gpus] by the definition."""
    rank = placement.topology.rank_of_slot()
    found = []
    for row, weights in zip(placement.physical_to_logical_map.tolist(), load, strict=True):
        ranks = [0.0] * placement.topology.gpus
        for slot, expert in enumerate(row):
            ranks[rank[slot]] += float(weights[expert]) / row.count(expert)
        found.append(ranks)
    return found
