"""The audited speeds are carried over whole: counts, units, and agreement with what we know."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from moeprof.errors import ModelError
from moeprof.model import MoEModel

DATA = Path(__file__).parents[2] / "benchmarks" / "data"


def table(name: str) -> list[dict[str, str]]:
    with (DATA / f"offload_audit_{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_all_rows_of_all_sources_are_there() -> None:
    rows = table("rows")
    assert len({row["id"] for row in rows}) == len(rows) == 58
    assert Counter(row["source"] for row in rows) == {
        **dict.fromkeys(
            ("ktransformers", "hybrimoe", "spmoe", "moespeq", "freetoken", "seqmoe"), 6
        ),
        **dict.fromkeys(("promoe", "pipeshard"), 5),
        **{"fate": 4, "lcpp-27861": 3, "fiddler": 2, "cpugpucollab": 2, "lcpp-24528": 1},
    }
    assert sum(row["lossy"] == "yes" for row in rows) == 4
    assert sum(row["speculative"] == "yes" for row in rows) == 12
    assert sum(row["tier"] == "A" for row in rows) == 15


def test_all_baselines_are_there() -> None:
    """The classes and their counts as the audit states them."""
    assert Counter(row["class"] for row in table("baselines")) == {
        "other": 88,
        "fork": 24,
        "llama.cpp unknown": 19,
        "ngl": 17,
        "cmoe": 3,
        "ncmoe": 1,
    }


def test_every_name_leads_somewhere() -> None:
    rows, baselines = table("rows"), table("baselines")
    assert {row["model"] for row in rows} == {row["model"] for row in table("models")}
    used = {row["engine"] for row in [*rows, *baselines]}
    assert used == {row["engine"] for row in table("engines")} | {"pregated"}
    assert {row["row"] for row in baselines} <= {row["id"] for row in rows}
    sources = (DATA / "README.md").read_text()
    assert all(f"| {row['source']} |" in sources for row in rows)


@pytest.mark.parametrize("row", table("rows"), ids=lambda row: row["id"])
def test_figures_are_in_their_units(row: dict[str, str]) -> None:
    low, high = float(row["host_low_gb_s"]), float(row["host_high_gb_s"])
    assert 50 < low <= high < 700
    assert float(row["link_low_gb_s"]) <= float(row["link_gb_s"]) <= float(row["link_high_gb_s"])
    assert 200 < float(row["gpu_gb_s"]) < 2000
    assert 0.1 < float(row["tok_s"]) < 200
    assert 2 < float(row["expert_bits"]) <= 16
    value, kind = float(row["budget_value"]), row["budget_kind"]
    memory = float(row["gpu_memory_gb"])
    assert {
        "fraction": 0 < value < 1,
        "experts_per_layer": 0 <= value == int(value) < 512,
        "memory_gb": 0 < value <= memory,
    }[kind]


@pytest.mark.parametrize("shape", table("models"), ids=lambda shape: shape["model"])
def test_shapes_are_those_of_presets(shape: dict[str, str]) -> None:
    try:
        model = MoEModel.preset(shape["model"])
    except ModelError:
        pytest.skip("no preset of this model: its shape is the audit's word")
    counts = model.parameters
    assert [model.layers, len(model.moe_layers), model.experts, model.top_k] == [
        int(shape[name]) for name in ("layers", "moe_layers", "experts", "top_k")
    ]
    assert model.expert_parameters == int(shape["expert_parameters"])
    assert counts["head"] == int(shape["head_parameters"])
    rest = counts["total"] - counts["routed"] - counts["embedding"] - counts["head"]
    assert rest == pytest.approx(int(shape["token_parameters"]), rel=1e-5)
