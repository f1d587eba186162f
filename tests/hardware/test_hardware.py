"""GPUs and clusters: figures with their sources, and nothing where nobody stated one."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.hardware import (
    FIGURE_UNITS,
    Cluster,
    load_hardware,
    load_profile,
    profile_names,
    read_profile,
)
from moeprof.quantity import Provenance

OWN_GPU = """
name = "mine"
title = "My GPU"
vendor = "me"

[memory_bytes]
value = 24_000_000_000
unit = "bytes"
provenance = "measured"
source = "its label"
"""


@pytest.mark.parametrize(
    ("text", "gpu", "nodes", "per_node"),
    [
        ("8xh200", "h200-sxm", 1, 8),
        ("2x8xb200", "b200-sxm", 2, 8),
        ("h100", "h100-sxm", 1, 1),
        ("h100_sxm", "h100-sxm", 1, 1),
        ("4xH200-SXM", "h200-sxm", 1, 4),
        (" 16x8xh100 ", "h100-sxm", 16, 8),
    ],
)
def test_what_a_user_writes(text: str, gpu: str, nodes: int, per_node: int) -> None:
    cluster = load_hardware(text)
    assert (cluster.profile.name, cluster.nodes, cluster.gpus_per_node) == (gpu, nodes, per_node)
    assert cluster.gpus == nodes * per_node
    assert load_hardware(cluster.name) == cluster
    assert load_hardware(cluster) is cluster


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8xh20", "no GPU 'h20' is known; did you mean h200"),
        ("4xrtx-pro-6000", "no GPU 'rtx-pro-6000'.*GPUs: b200-sxm, h100-sxm, h200-sxm"),
        ("8x", "no GPU '8x'"),
        ("", "no hardware is named"),
        ("0xh200", "has none"),
        ("2x0xh200", "has none"),
        ("-1xh200", "no GPU"),
        ("8xnone.toml", "none.toml: No such file"),
        ("8x\0.toml", "null byte"),
        ("h" * 5000, "no GPU"),
    ],
)
def test_unknown_hardware_is_refused_and_never_replaced(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_hardware(text)


@pytest.mark.parametrize("name", profile_names())
def test_every_figure_that_ships_has_unit_source_and_provenance(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    for key, figure in profile.figures.items():
        assert figure.unit == FIGURE_UNITS[key]
        assert figure.source
    assert profile.memory_bandwidth.value > 1e12
    assert pickle.loads(pickle.dumps(profile)) == profile
    plain = json.loads(json.dumps(Cluster(profile, 2, 8).to_dict()))
    assert plain["profile"]["figures"]["memory_bytes"]["source"]


def test_h200_as_published() -> None:
    h200 = load_profile("h200")
    assert h200.memory_bytes.value == 141e9
    assert h200.memory_bandwidth.value == 4.8e12
    assert h200.dense_tflops("bf16").value == 989
    assert h200.figure("scale_up_bytes_per_s").value == 450e9


@pytest.mark.parametrize("name", ["dense_tflops_fp4", "colour"])
def test_a_figure_that_is_not_known_raises(name: str) -> None:
    with pytest.raises(InputError, match=name):
        load_profile("h200").figure(name)


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN_GPU, encoding="utf-8")
    assert load_hardware(path).gpus == 1
    cluster = load_hardware(f"4x{path}")
    assert (cluster.name, cluster.gpus) == ("4xmine", 4)
    assert cluster.profile.memory_bytes.provenance is Provenance.MEASURED
    with pytest.raises(InputError, match="memory_bandwidth_bytes_per_s is not known"):
        _ = cluster.profile.memory_bandwidth


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("24_000_000_000", "-1", "memory_bytes: value"),
        ("24_000_000_000", "nan", "memory_bytes: value"),
        ("24_000_000_000", '"24"', "memory_bytes: value"),
        ('source = "its label"', "", "memory_bytes: source"),
        ('"its label"', '""', "memory_bytes: source"),
        ('"measured"', '"guessed"', "memory_bytes: provenance"),
        ('unit = "bytes"', 'unit = "GB"', "memory_bytes must be in bytes, not in GB"),
        ("[memory_bytes]", "[memory]", "no figure is called 'memory'"),
        ("[memory_bytes]", "[memory_bytes]\nlow = 30_000_000_000", "memory_bytes: .*one end"),
        ('name = "mine"', "", "name: Field required"),
        ('vendor = "me"', 'vendor = "me"\ncolour = "red"', "colour"),
        ('name = "mine"', "name = ", "not TOML"),
    ],
)
def test_a_faulty_profile_is_one_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN_GPU.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=message) as raised:
        read_profile(path)
    assert "\n" not in str(raised.value)


@given(st.text(max_size=30))
def test_any_text_is_hardware_or_an_input_error(text: str) -> None:
    try:
        assert load_hardware(text).gpus >= 1
    except InputError as error:
        assert str(error)
