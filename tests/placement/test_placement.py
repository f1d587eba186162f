"""A placement's laws, its refusals, and its file."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import InfeasibleError, InputError
from moeprof.hardware import load_hardware
from moeprof.placement import Placement, Plan, Topology, read_plan, write_plan
from tests.placement.maps import loads, placements, slow_rank_load

TWO_GPUS = Topology((2, 2))


@given(placements(), st.data())
def test_loads_are_those_of_the_definition(placement: Placement, data: st.DataObject) -> None:
    load = data.draw(loads(placement.layers, placement.experts))
    ranks = placement.rank_load(load)
    np.testing.assert_allclose(ranks, slow_rank_load(placement, load))
    np.testing.assert_allclose(ranks.sum(axis=1), load.sum(axis=1))
    assert placement.imbalance(load) >= 1 - 1e-12


@given(placements())
def test_the_two_maps_are_inverse(placement: Placement) -> None:
    for layer, slots_of in enumerate(placement.logical_to_physical_map):
        for expert, slots in enumerate(slots_of):
            held = slots[slots >= 0].tolist()
            assert held == sorted(held)
            assert len(held) == placement.logical_replica_count[layer, expert]
            assert (placement.physical_to_logical_map[layer, held] == expert).all()
    assert (placement.logical_replica_count.sum(axis=1) == placement.topology.slots_in_all).all()


@given(placements(), st.randoms(use_true_random=False))
def test_moves_are_counted_by_gpu_not_by_slot(placement: Placement, random: object) -> None:
    first = placement.topology.first_slot()
    table = placement.physical_to_logical_map.copy()
    for start, end in itertools.pairwise(first):
        table[:, start:end] = table[:, start:end][:, ::-1]
    turned = Placement(table, placement.experts, placement.topology)
    assert turned.moved_slots(placement) == placement.moved_slots(turned) == 0


def test_moves_of_an_example() -> None:
    before = Placement(np.array([[0, 1, 2, 0]]), 3, TWO_GPUS)
    after = Placement(np.array([[0, 2, 1, 0]]), 3, TWO_GPUS)
    assert after.moved_slots(before) == 2


@pytest.mark.parametrize(
    ("rows", "experts", "words"),
    [
        ([[0, 1, 2, 4]], 4, "expert 4 of 4"),
        ([[0, 1, 2, -1]], 4, "expert -1 of 4"),
        ([[0, 1, 2, 0]], 4, "layer 0 of the map: expert 3 has no slot"),
        ([[0, 1, 2, 1], [0, 0, 1, 2]], 3, "layer 1 of the map: expert 0 stands twice on GPU 0"),
        ([[0, 1, 2]], 3, r"shape \(1, 3\)"),
        ([], 3, "shape"),
    ],
)
def test_a_map_that_breaks_a_rule_is_refused(
    rows: list[list[int]], experts: int, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Placement(np.array(rows, np.int64), experts, TWO_GPUS)


def test_duplicates_of_a_foreign_map_are_counted() -> None:
    rows = np.array([[0, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 0]])
    assert Placement(rows, 2, TWO_GPUS, allow_duplicates=True).duplicates == 3


def test_slots_are_held_against_memory() -> None:
    rows = np.array([[0, 1, 2, 3]] * 3)
    room = Topology((2, 2), memory_bytes=(60, 59))
    assert Placement(rows, 4, room, expert_bytes=9).redundant_bytes == 0
    with pytest.raises(InfeasibleError, match=r"GPU 1: 2 slots in 3 layers take 60 .* 1 slots fit"):
        Placement(rows, 4, room, expert_bytes=10)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Topology(()), "without GPUs"),
        (lambda: Topology((1, 0)), "slots of GPU 1 = 0"),
        (lambda: Topology((1, 1, 1), nodes=2), "3 GPUs do not divide evenly over 2 nodes"),
        (lambda: Topology((1, 1), memory_bytes=(1,)), "memory of 1 GPUs"),
        (lambda: Topology.even(8, 130), "136 would, 6 redundant experts more"),
        (lambda: Topology.even(0, 8), "0 GPUs"),
        (lambda: Topology((1,)).refuse_too_few_slots(2), "1 slots for 2 experts"),
    ],
)
def test_a_topology_that_cannot_be_is_refused(make: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()  # type: ignore[operator]


def test_a_topology_of_a_cluster_has_its_links() -> None:
    topology = Topology.of_cluster(load_hardware("2x4xh200+ib-ndr-400"), [3] * 8)
    assert topology.gpus_per_node == 4
    assert topology.node_of_rank().tolist() == [0] * 4 + [1] * 4
    assert topology.scale_up_bytes_per_s is not None
    assert topology.network_bytes_per_s is not None
    assert topology.network_bytes_per_s.value < topology.scale_up_bytes_per_s.value


@given(placements())
def test_a_plan_reads_back_as_written(tmp_path_factory: object, placement: Placement) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"  # type: ignore[attr-defined]
    load = np.arange(placement.layers * placement.experts).reshape(placement.layers, -1)
    layers = tuple(range(3, 3 + placement.layers))
    for number, known in enumerate((None, load)):
        plan = Plan(placement, layers, "best", "minimax-m3", known)
        write_plan(plan, path, force=number > 0)
        assert read_plan(path).to_dict() == plan.to_dict()


def written_plan(folder: Path) -> Path:
    path = folder / "plan.json"
    write_plan(Plan(Placement(np.array([[0, 1, 2, 3]]), 4, TWO_GPUS), (5,), "linear"), path)
    return path


def test_a_plan_is_not_overwritten_without_force(tmp_path: Path) -> None:
    path = written_plan(tmp_path)
    with pytest.raises(InputError, match="--force"):
        write_plan(read_plan(path), path)
    write_plan(read_plan(path), path, force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("schema", "moeprof.plan/2", "is not a plan"),
        ("experts", "four", "experts: "),
        ("experts", 5, "expert 4 has no slot"),
        ("physical_to_logical_map", [[0, 1, 2, 3], [0]], "differ in length"),
        ("layers", [1, 2], "names 2 layers; its map has 1"),
        ("topology", {"slots": [4], "nodes": 0}, "nodes"),
        ("colour", "red", "colour"),
    ],
)
def test_a_damaged_plan_is_named(tmp_path: Path, key: str, value: object, words: str) -> None:
    path = written_plan(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(InputError, match=words) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_plan(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_plan(tmp_path / "x.json")
