"""GPUs and clusters: figures with their sources, and nothing where nobody stated one."""

from __future__ import annotations

import json
import pickle
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.hardware import (
    FIGURE_UNITS,
    Cluster,
    HardwareList,
    Kind,
    describe_hardware,
    hardware_files,
    list_hardware,
    load_hardware,
    load_profile,
    profile_names,
    read_profile,
)
from moeprof.quantity import Provenance

PROFILES = Path(__file__).parents[2] / "moeprof" / "hardware" / "profiles"
SHIPPED = sorted(PROFILES.glob("*/*.toml"))

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
        ("4xrtx-pro-6000", "rtx-pro-6000", 1, 4),
        ("4xrtx-4090+epyc-9005", "rtx-4090", 1, 4),
        ("2x8xb200+xeon6-6900p+4xnvme-gen5+ib-ndr", "b200-sxm", 2, 8),
        ("h100-pcie + pcie4-x16 + nvlink4", "h100-pcie", 1, 1),
        ("gb10+ethernet-200", "gb10", 1, 1),
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
        ("8xh201", "drive 'h201' is known; did you mean h20"),
        ("4xrtx-6000", "no GPU.*'rtx-6000'.*GPUs: a100-sxm, b200-sxm.*moeprof hardware list"),
        ("8x", "no GPU, host, link or drive '8x'"),
        ("", "no hardware is named"),
        ("0xh200", "has none"),
        ("2x0xh200", "has none"),
        ("-1xh200", "no GPU"),
        ("8xnone.toml", "none.toml: No such file"),
        ("8x\0.toml", "null byte"),
        ("h" * 5000, "no GPU"),
        ("epyc-9005", "no GPU is named; put one before it: 4xrtx-4090.epyc-9005-12ch-6000"),
        ("8xh200+", "no hardware is named"),
        ("8xh200+epyc", "drive 'epyc' is known; did you mean epyc-"),
        ("8xh200+h100", "both the GPU of one node: name one"),
        ("8xh200+grace+epyc-9004", "'grace-lpddr5x' and 'epyc-9004-12ch-4800' are both the host"),
        ("8xh200+pcie4-x16+pcie5-x16", "both the host link of one node"),
        ("8xh200+2xgrace", "only GPUs and drives are counted"),
        ("8xh200+0xnvme-gen4", "has none of it: leave it out"),
        ("8xh200+2x2xnvme-gen4", "nodes are counted once, before the GPUs"),
        ("2x8xb200+none.toml", "none.toml: No such file"),
        ("m3-ultra+epyc-9005", "is its own host: leave out '.epyc-9005-12ch-6000'"),
    ],
)
def test_unknown_hardware_is_refused_and_never_replaced(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_hardware(text)


@pytest.mark.parametrize("name", profile_names())
def test_every_figure_that_ships_has_unit_source_and_provenance(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.figures
    for key, figure in profile.figures.items():
        assert figure.unit == FIGURE_UNITS[key]
        assert len(figure.source) > 10
        assert not figure.verified or figure.provenance is not Provenance.ASSUMED
    for alias in profile.aliases:
        assert load_profile(alias) is profile or load_profile(alias) == profile
    assert pickle.loads(pickle.dumps(profile)) == profile
    plain = json.loads(json.dumps(profile.to_dict()))
    assert all(figure["source"] and "verified" in figure for figure in plain["figures"].values())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_file_is_called_as_its_profile_and_says_what_was_verified(path: Path) -> None:
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    assert (content["name"], content["kind"]) == (path.stem, path.parent.name)
    tables = [value for value in content.values() if isinstance(value, dict)]
    assert all("verified" in table and "source" in table for table in tables)


def test_no_name_means_two_devices() -> None:
    profiles = list_hardware().profiles
    spoken = [name for profile in profiles for name in (profile.name, *profile.aliases)]
    assert len(spoken) == len(set(spoken))
    assert len(profiles) == len(SHIPPED)


@pytest.mark.parametrize("kind", Kind)
def test_what_every_device_of_a_kind_has(kind: Kind) -> None:
    needed = {
        Kind.GPU: {"memory_bytes", "memory_bandwidth_bytes_per_s", "dense_tflops_bf16", "power_w"},
        Kind.SOC: {"memory_bytes", "memory_bandwidth_bytes_per_s"},
        Kind.HOST: {"memory_max_bytes", "memory_bandwidth_bytes_per_s"},
        Kind.LINK: {"link_bytes_per_s"},
        Kind.DRIVE: {"link_bytes_per_s", "read_bytes_per_s", "latency_s"},
    }
    for name in profile_names(kind):
        assert needed[kind] <= set(load_profile(name).figures), name


def test_what_is_reached_is_never_above_the_peak() -> None:
    pairs = [
        ("memory_bandwidth_effective_bytes_per_s", "memory_bandwidth_bytes_per_s"),
        ("host_link_effective_bytes_per_s", "host_link_bytes_per_s"),
        ("link_effective_bytes_per_s", "link_bytes_per_s"),
        ("read_bytes_per_s", "link_bytes_per_s"),
        ("all_to_all_bytes_per_s", "scale_up_bytes_per_s"),
    ]
    for profile in list_hardware().profiles:
        for reached, peak in pairs:
            if reached in profile.figures and peak in profile.figures:
                assert profile.figure(reached).value <= profile.figure(peak).value, profile.name


def test_the_peak_of_a_host_is_its_channels() -> None:
    for name in profile_names(Kind.HOST):
        host = load_profile(name)
        if "memory_channels" in host.figures:
            channels, rate = host.figure("memory_channels"), host.figure("memory_transfers_per_s")
            assert host.memory_bandwidth.value == channels.value * rate.value * 8


def test_parts_of_a_cluster() -> None:
    cluster = load_hardware("2x8xb200+epyc-9005+4xnvme-gen5+ib-ndr")
    assert cluster.part("host").name == "epyc-9005-12ch-6000"
    assert (cluster.part("drive").name, cluster.drives) == ("nvme-gen5-x4", 4)
    assert cluster.part("network").name == "ib-ndr-400"
    assert load_hardware("rtx-4090").host_link_rate.value == 25e9
    assert load_hardware("rtx-4090+pcie3-x16").host_link_rate.value == 12.3e9
    plain = cluster.to_dict()
    for place in ("profile", "host", "drive", "network"):
        assert all(figure["source"] for figure in plain[place]["figures"].values())


def test_what_a_cluster_lacks_is_an_error_with_the_remedy() -> None:
    cluster = load_hardware("8xb200")
    with pytest.raises(InputError, match=r"no host is named; add one, such as 8xb200-sxm\+epyc"):
        cluster.part("host")
    with pytest.raises(InputError, match="a cluster has no 'profile'"):
        cluster.part("profile")
    with pytest.raises(InputError, match="b200-sxm: host_link_effective_bytes_per_s is not known"):
        _ = cluster.host_link_rate


def test_files_of_the_users_own_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN_GPU, encoding="utf-8")
    assert hardware_files("2x8xb200+epyc-9005") == []
    assert hardware_files(f"4x{path}+grace+other.toml") == [path, Path("other.toml")]
    assert hardware_files(str(path)) == [path]


def test_what_has_no_gpu_is_described_alone() -> None:
    alone = describe_hardware("epyc-9005+nvme-gen5")
    assert isinstance(alone, HardwareList)
    assert [profile.kind for profile in alone.profiles] == [Kind.HOST, Kind.DRIVE]
    assert isinstance(describe_hardware("8xh200+epyc-9005"), Cluster)


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


@pytest.mark.parametrize("name", profile_names())
def test_every_figure_that_is_absent_is_an_error_that_names_it(name: str) -> None:
    profile = load_profile(name)
    for figure in FIGURE_UNITS:
        if figure in profile.figures:
            assert profile.figure(figure).value >= 0
            continue
        with pytest.raises(InputError, match=f"^{name}: {figure} is not known"):
            profile.figure(figure)


# fmt: off
DEVICES = (
    "h100-sxm", "h100-pcie", "h200", "b200", "b300", "gb200", "gb300", "a100", "l40s", "mi300x",
    "mi325x", "mi355x", "rtx-3090", "rtx-4090", "rtx-5090", "rtx-pro-6000", "gb10", "strix-halo",
    "m3-ultra", "m4-max", "m5-max", "epyc-9005-12ch-6400", "epyc-9005-8ch-6400", "epyc-9004",
    "xeon-spr", "xeon6-6900p", "threadripper-pro-9000", "desktop-ddr5", "grace", "pcie3-x16",
    "pcie4-x16", "pcie5-x16", "pcie6-x16", "nvlink3", "nvlink4", "nvlink5", "nvlink-c2c",
    "ethernet-100", "ethernet-400", "ib-hdr", "ib-ndr", "ib-xdr", "nvme-gen4", "nvme-gen5",
)
# fmt: on


@pytest.mark.parametrize("name", DEVICES)
def test_devices_that_people_run_models_on(name: str) -> None:
    profile = load_profile(name)
    assert name in (profile.name, *profile.aliases) and profile.figures


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
        ("[memory_bytes]", "[memory]", "no figure is called 'memory'; there are memory_bytes"),
        ('vendor = "me"', 'kind = "link"', "role: a link has one of host, scale-up, network"),
        ('vendor = "me"', 'kind = "tpu"', "kind: Input should be 'gpu'"),
        ("[memory_bytes]", "[memory_bytes]\nlow = 30_000_000_000", "memory_bytes: .*one end"),
        ('name = "mine"', "", "name: Field required; add it"),
        ('vendor = "me"', 'vendor = "me"\ncolour = "red"', "colour.*keys here are"),
        ('name = "mine"', "name = ", "not TOML"),
    ],
)
def test_a_faulty_profile_is_one_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN_GPU.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=message) as raised:
        read_profile(path)
    assert "\n" not in str(raised.value)


MACHINE = """
[[profile]]
count = 2
kind = "gpu"
name = "mine"
title = "My GPU"

[[profile]]
kind = "host"
name = "my-host"
title = "My host"
"""


def test_the_file_of_a_machine(tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    path.write_text(MACHINE, encoding="utf-8")
    assert load_hardware(path).name == "2xmine+my-host"
    assert load_hardware(f"{path}+nvme-gen4").drives == 1
    with pytest.raises(InputError, match="a machine of 2 profiles"):
        read_profile(path)
    with pytest.raises(InputError, match="the file counts its own parts; leave out '4x'"):
        load_hardware(f"4x{path}")
    path.write_text(MACHINE.replace("count = 2", "count = 0"), encoding="utf-8")
    with pytest.raises(InputError, match="profile 1: count: Input should be greater"):
        load_hardware(path)
    path.write_text(MACHINE + "\n[memory_bytes]\nvalue = 1", encoding="utf-8")
    with pytest.raises(InputError, match="a machine is a list"):
        load_hardware(path)
    path.write_text("profile = [1]", encoding="utf-8")
    with pytest.raises(InputError, match="profile 1: not a table"):
        load_hardware(path)
    path.write_text("profile = 1", encoding="utf-8")
    with pytest.raises(InputError, match="a machine is a list"):
        load_hardware(path)


@given(st.text(max_size=30))
def test_any_text_is_hardware_or_an_input_error(text: str) -> None:
    try:
        assert load_hardware(text).gpus >= 1
    except InputError as error:
        assert str(error)
