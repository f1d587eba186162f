"""What we export is what the engine's reader, written from its source, takes for the plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.cli.main import main
from moeprof.errors import InputError
from moeprof.placement import Placement, Plan, Topology, write_plan
from moeprof.placement.exports import ENGINES, export_plan
from tests.placement.exports import readers

EXPERTS, LAYERS, GPUS = 8, (3, 4, 6), 4


def some_plan(redundant: int = 4, seed: int = 0, topology: Topology | None = None) -> Plan:
    """A valid random map of three MoE layers of a model with dense ones between, and a load."""
    rng = np.random.default_rng(seed)
    topology = topology or Topology.even(GPUS, EXPERTS + redundant)
    order = [rng.permutation(EXPERTS) for _ in LAYERS]
    table = np.stack([np.resize(row, topology.slots_in_all) for row in order])
    load = rng.integers(0, 1000, (len(LAYERS), EXPERTS))
    return Plan(Placement(table, EXPERTS, topology), LAYERS, "best", "some-model", load)


def hottest(plan: Plan, count: int) -> dict[int, set[int]]:
    assert plan.load is not None
    ranked = {
        layer: sorted(range(EXPERTS), key=lambda e, row=row: (-row[e], e))
        for layer, row in zip(plan.layers, plan.load.tolist(), strict=True)
    }
    return {layer: set(order[:count]) for layer, order in ranked.items()}


@given(seed=st.integers(0, 50), redundant=st.sampled_from([0, 4, 8]))
def test_sglang_reads_the_map(
    tmp_path_factory: pytest.TempPathFactory, seed: int, redundant: int
) -> None:
    plan = some_plan(redundant, seed)
    path = tmp_path_factory.mktemp("a folder") / "it's.json"
    flags = export_plan(plan, "sglang", path).flags
    ranks, table = readers.sglang_map(flags, 7, EXPERTS)
    assert ranks == GPUS
    assert [table[layer] for layer in LAYERS] == plan.placement.physical_to_logical_map.tolist()


def test_sglang_has_a_row_for_every_hidden_layer_and_names_nodes(tmp_path: Path) -> None:
    plan = some_plan(topology=Topology.even(GPUS, 12, nodes=2))
    flags = export_plan(plan, "sglang", tmp_path / "m.json", hidden_layers=10).flags
    assert len(readers.sglang_map(flags, 10, EXPERTS)[1]) == 10
    assert "--nnodes 2" in flags


@given(seed=st.integers(0, 50), redundant=st.sampled_from([0, 4, 8]))
def test_trtllm_reads_the_assignments(
    tmp_path_factory: pytest.TempPathFactory, seed: int, redundant: int
) -> None:
    plan = some_plan(redundant, seed)
    path = tmp_path_factory.mktemp("a folder") / "it's.yaml"
    flags = export_plan(plan, "trtllm", path).flags
    ranks, assignments = readers.trtllm_assignments(flags, EXPERTS)
    assert ranks == GPUS
    table = plan.placement.physical_to_logical_map.tolist()
    assert assignments == dict(zip(LAYERS, table, strict=True))


@given(seed=st.integers(0, 50), count=st.integers(1, EXPERTS))
def test_ktransformers_keeps_the_hottest_under_both_its_rules(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    plan = some_plan(seed=seed)
    path = tmp_path_factory.mktemp("kt") / "hot.pt"
    flags = export_plan(plan, "ktransformers", path, gpu_experts=count).flags
    wanted = hottest(plan, count)
    for mask in readers.ktransformers_masks(flags, 7, list(LAYERS), EXPERTS):
        found = {n: set(np.flatnonzero(row).tolist()) for n, row in enumerate(mask.numpy())}
        assert {n: ids for n, ids in found.items() if ids} == wanted


TENSORS = [
    f"blk.{layer}.{name}.weight"
    for layer in range(70)
    for name in (
        "ffn_up_exps",
        "ffn_down_exps",
        "ffn_gate_exps",
        "ffn_up_shexp",
        "ffn_gate_inp",
        "ffn_up",
        "attn_q",
    )
]


@given(seed=st.integers(0, 50), count=st.integers(0, EXPERTS))
def test_llamacpp_moves_the_experts_of_whole_layers_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    plan = some_plan(seed=seed)
    path = tmp_path_factory.mktemp("llama") / "flags.txt"
    flags = export_plan(plan, "llamacpp", path, gpu_experts=count).flags
    assert path.read_text().strip() == flags
    moved = readers.llamacpp_on_cpu(flags, TENSORS)
    layers = {int(name.split(".")[1]) for name in moved}
    assert layers <= set(LAYERS)
    assert len(layers) == len(LAYERS) - count * len(LAYERS) // EXPERTS
    kinds = ("ffn_up_exps", "ffn_down_exps", "ffn_gate_exps")
    assert sorted(moved) == sorted(f"blk.{n}.{kind}.weight" for n in layers for kind in kinds)


def test_llamacpp_leaves_even_layers_on_the_gpu_and_has_a_short_form(tmp_path: Path) -> None:
    load = np.array([[8, 0, 0, 0, 0, 0, 0, 0], [5, 3, 0, 0, 0, 0, 0, 0], [1] * 8])
    plan = replace(some_plan(), load=load)
    result = export_plan(plan, "llamacpp", tmp_path / "f.txt", gpu_experts=3)
    assert readers.llamacpp_on_cpu(result.flags, ["blk.6.ffn_up_exps.weight"]) == []
    (short,) = [note for note in result.notes if "--n-cpu-moe" in note]
    real = [name for name in TENSORS if int(name.split(".")[1]) in LAYERS]
    moved = readers.llamacpp_on_cpu(short[short.index("--n-cpu-moe") :], real)
    assert moved == readers.llamacpp_on_cpu(result.flags, real)
    assert {name.split(".")[1] for name in moved} == {"3", "4"}


@given(seed=st.integers(0, 50), count=st.integers(1, EXPERTS))
def test_the_cache_fork_uploads_the_hottest(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    plan = some_plan(seed=seed)
    assert plan.load is not None
    plan = replace(plan, load=np.maximum(plan.load, 1))  # the fork uploads none that is never used
    path = tmp_path_factory.mktemp("fork") / "profile.csv"
    flags = export_plan(plan, "llamacpp-cache", path, gpu_experts=count).flags
    assert readers.cache_fork_slots(flags, EXPERTS) == hottest(plan, count)


def test_too_many_experts_for_the_forks_lines_are_refused(tmp_path: Path) -> None:
    experts = 1200
    table = np.arange(experts)[None]
    placement = Placement(table, experts, Topology.even(2, experts))
    plan = Plan(placement, (0,), "linear", load=np.ones((1, experts), np.int64))
    with pytest.raises(InputError, match="1200 experts are too many"):
        export_plan(plan, "llamacpp-cache", tmp_path / "p.csv")


def test_vllm_takes_the_redundancy(tmp_path: Path) -> None:
    result = export_plan(some_plan(4), "vllm", tmp_path / "v.json")
    given = readers.vllm_arguments(result.flags)
    assert given["eplb_config"]["num_redundant_experts"] == 4
    assert given["enable_eplb"] and given["enable_expert_parallel"]
    assert given["data_parallel_size"] == "4"
    assert json.loads((tmp_path / "v.json").read_text()) == given["eplb_config"]
    assert "reads no map" in result.notes[0]


@pytest.mark.parametrize(
    ("row", "name"),
    [([0, 1, 2, 3, 4, 5, 6, 7], "linear"), ([0, 4, 1, 5, 2, 6, 3, 7], "round_robin")],
)
def test_vllm_starts_with_the_maps_it_has_names_for(
    tmp_path: Path, row: list[int], name: str
) -> None:
    placement = Placement(np.array([row] * 3), EXPERTS, Topology.even(GPUS, EXPERTS))
    result = export_plan(Plan(placement, LAYERS, "linear"), "vllm", tmp_path / "v.json")
    given = readers.vllm_arguments(result.flags)
    assert given["expert_placement_strategy"] == name
    assert not given["enable_eplb"]


@pytest.mark.parametrize("engine", ["sglang", "trtllm", "vllm"])
def test_unequal_slots_are_refused(tmp_path: Path, engine: str) -> None:
    plan = some_plan(topology=Topology((3, 1, 4)))
    with pytest.raises(InputError, match="every GPU as many slots"):
        export_plan(plan, engine, tmp_path / "m.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("engine", ["ktransformers", "llamacpp", "llamacpp-cache"])
def test_a_plan_without_load_cannot_say_what_is_hot(tmp_path: Path, engine: str) -> None:
    plan = replace(some_plan(), load=None)
    with pytest.raises(InputError, match="written without a load"):
        export_plan(plan, engine, tmp_path / "f")


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        ("megatron", {}, "engine 'megatron' is not one of sglang, vllm"),
        ("sglang", {"hidden_layers": 5}, "the plan has experts in layer 6"),
        ("ktransformers", {"gpu_experts": 9}, "a layer has 8 of them"),
        ("ktransformers", {"gpu_experts": -1}, "a layer has 8 of them"),
    ],
)
def test_what_cannot_be_exported_is_named(
    tmp_path: Path, engine: str, options: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export_plan(some_plan(), engine, tmp_path / "f.json", **options)  # type: ignore[arg-type]


def test_sglang_wants_its_ending_and_nothing_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.json"):
        export_plan(some_plan(), "sglang", tmp_path / "map.txt")
    export_plan(some_plan(), "sglang", tmp_path / "map.json")
    with pytest.raises(InputError, match="without --force"):
        export_plan(some_plan(), "sglang", tmp_path / "map.json")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_command_prints_flags_and_writes_beside_the_plan(
    tmp_path: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    write_plan(some_plan(), path)
    assert main(["place", "export", str(path), "--engine", engine, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert Path(result["path"]).is_file()
    assert Path(result["path"]).name.startswith(f"plan.{engine}.")
    assert result["flags"]
    assert main(["place", "export", str(path), "--engine", engine, "--force"]) == 0
    assert result["flags"] in capsys.readouterr().out
