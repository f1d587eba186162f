"""Handing a new map to the GPUs so that the fewest experts move, beside every other way to."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.placement import Placement, Topology
from moeprof.placement.moves import aligned, count_moves
from moeprof.quantity import Provenance, Quantity


@st.composite
def two_maps(draw: st.DrawFn) -> tuple[Placement, Placement]:
    """Two valid maps of one topology of at most two nodes and four GPUs."""
    nodes = draw(st.integers(1, 2))
    gpus = nodes * draw(st.integers(1, 2))
    slots = tuple(draw(st.lists(st.integers(1, 3), min_size=gpus, max_size=gpus)))
    topology = Topology(slots, nodes)
    experts = draw(st.integers(max(slots), sum(slots)))
    tables = []
    for _ in range(2):
        order = [draw(st.permutations(range(experts))) for _ in range(2)]
        tables.append(np.array([np.resize(row, sum(slots)) for row in order]))
    first, second = (Placement(table, experts, topology) for table in tables)
    return first, second


def orders(topology: Topology) -> list[tuple[int, ...]]:
    """Every order of GPUs that keeps nodes together and slots as they are."""
    size = topology.gpus_per_node
    found = []
    for order in permutations(range(topology.gpus)):
        whole = all(
            len({order[rank] // size for rank in range(node * size, (node + 1) * size)}) == 1
            for node in range(topology.nodes)
        )
        if whole and all(topology.slots[o] == topology.slots[r] for r, o in enumerate(order)):
            found.append(order)
    return found


def moved(placement: Placement, before: Placement, order: tuple[int, ...], layer: int) -> int:
    here = placement.copies_on_rank[layer][list(order)] > 0
    return int((here & (before.copies_on_rank[layer] == 0)).sum())


@settings(max_examples=150)
@given(maps=two_maps())
def test_no_order_of_gpus_moves_fewer(maps: tuple[Placement, Placement]) -> None:
    before, after = maps
    found = aligned(after, before)
    fewest = sum(
        min(moved(after, before, order, layer) for order in orders(after.topology))
        for layer in range(after.layers)
    )
    assert found.moved_slots(before) == fewest
    assert count_moves(found, before).slots == fewest


@given(maps=two_maps())
def test_an_aligned_map_is_the_same_but_for_the_order_of_gpus(
    maps: tuple[Placement, Placement],
) -> None:
    before, after = maps
    found = aligned(after, before)
    load = np.arange(1, after.experts + 1) ** 2 * np.ones((after.layers, 1))
    np.testing.assert_allclose(
        np.sort(found.rank_load(load), axis=1), np.sort(after.rank_load(load), axis=1)
    )
    size = after.topology.gpus_per_node
    for mine, theirs in zip(found.copies_on_rank, after.copies_on_rank, strict=True):
        nodes = [sorted(map(tuple, part.reshape(-1, size, after.experts).sum(axis=1).tolist()))
                 for part in (mine, theirs)]  # fmt: skip
        assert nodes[0] == nodes[1]


@given(maps=two_maps())
def test_what_stays_on_a_gpu_stays_in_its_slot(maps: tuple[Placement, Placement]) -> None:
    before, after = maps
    found = aligned(after, before)
    kept = (found.physical_to_logical_map == before.physical_to_logical_map).sum()
    stays = (found.copies_on_rank > 0) & (before.copies_on_rank > 0)
    assert kept == stays.sum()
    assert aligned(before, before).moved_slots(before) == 0


def rate(value: float, low: float, high: float, kind: Provenance) -> Quantity:
    return Quantity(value, "bytes/s", kind, low, high, f"a link of {value:g}")


def test_the_slowest_gpus_links_take_the_time() -> None:
    topology = Topology(
        (2, 2, 2, 2),
        2,
        scale_up_bytes_per_s=rate(100, 50, 200, Provenance.MEASURED),
        network_bytes_per_s=rate(10, 10, 20, Provenance.SPECIFIED),
    )
    before = Placement(np.array([[0, 1, 2, 3, 4, 5, 6, 7]]), 8, topology)
    after = Placement(np.array([[0, 2, 1, 4, 3, 5, 6, 7]]), 8, topology)
    moves = count_moves(after, before, expert_bytes=1000)
    # GPU 0 gets 2 from its node; GPU 1 gets 1 from its node and 4 from afar; GPU 2 gets 3 from afar
    assert (moves.slots, moves.between_nodes, moves.bytes) == (4, 2, 4000)
    assert moves.seconds is not None
    assert moves.seconds.value == pytest.approx(1000 / 100 + 1000 / 10)
    assert moves.seconds.low == pytest.approx(1000 / 200 + 1000 / 20)
    assert moves.seconds.high == pytest.approx(1000 / 50 + 1000 / 10)
    assert moves.seconds.provenance is Provenance.SPECIFIED
    assert "a link of 10" in moves.seconds.source


def test_without_a_rate_there_are_no_seconds_and_no_moves_take_none() -> None:
    topology = Topology((2, 2), 1)
    before = Placement(np.array([[0, 1, 2, 3]]), 4, topology)
    after = Placement(np.array([[0, 2, 1, 3]]), 4, topology)
    assert count_moves(after, before, expert_bytes=8).seconds is None
    assert count_moves(after, before).bytes is None
    still = count_moves(before, before, expert_bytes=8)
    assert still.seconds is not None and still.seconds.value == 0


def test_maps_of_other_machines_are_refused() -> None:
    one = Placement(np.array([[0, 1, 2, 3]]), 4, Topology((2, 2)))
    other = Placement(np.array([[0, 1, 2, 3]]), 4, Topology((1, 3)))
    with pytest.raises(InputError, match="moves need one"):
        aligned(one, other)
