"""The probe: what it measures has a method and a spread, and what it cannot is named."""

from __future__ import annotations

import errno
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from moeprof.cli.main import main
from moeprof.errors import InputError
from moeprof.hardware import Cluster, HardwareList, Kind, describe_hardware, load_hardware
from moeprof.hardware.probe import drive, gpu, machine, probe_hardware
from moeprof.hardware.probe.measurement import NotMeasuredError, measure, rate
from moeprof.hardware.probe.memory import default_array_bytes, thread_counts
from moeprof.hardware.probe.products import probe_numpy, probe_torch
from moeprof.quantity import Provenance

MIB = 1 << 20
SHORT: dict[str, Any] = {"seconds": 0.001, "array_bytes": MIB, "drive_bytes": 16 * MIB}


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> None:
        raise NotMeasuredError("NVML: not here")

    monkeypatch.setattr("moeprof.hardware.probe.run.find_gpus", find)


@pytest.mark.usefixtures("no_gpu")
def test_a_short_probe_becomes_a_part_of_a_cluster(tmp_path: Path) -> None:
    path = tmp_path / "here.toml"
    probe = probe_hardware(path, **SHORT, skip=["gemm"])
    assert probe.parts[0].profile.kind is Kind.HOST
    assert probe.missing["gpu"] == "NVML: not here"
    assert probe.missing["gemm fp32"] == probe.missing["gemm bf16"] == "left out as asked"
    host = probe.parts[0].profile
    memory = host.figures["memory_bandwidth_effective_bytes_per_s"]
    assert [threads for threads, _ in memory.by_threads] == thread_counts(machine.cpu_count())
    assert max(value for _, value in memory.by_threads) == memory.value
    for part in probe.parts:
        for figure in part.profile.figures.values():
            if figure.provenance is Provenance.MEASURED:
                assert figure.method and figure.low is not None and figure.high is not None
                assert 0 < figure.low <= figure.value <= figure.high
    cluster = load_hardware(f"2xrtx-4090+{path}")
    assert cluster.part("host") == host  # the same figures, through the file
    alone = describe_hardware(path)
    assert isinstance(alone, HardwareList)
    assert alone.profiles == [part.profile for part in probe.parts]
    with pytest.raises(InputError, match="no GPU is named; put one before it"):
        load_hardware(path)
    with pytest.raises(InputError, match="memory_bandwidth_bytes_per_s is not known"):
        _ = host.memory_bandwidth
    assert [file.name for file in tmp_path.iterdir()] == ["here.toml"]


@pytest.mark.usefixtures("no_gpu")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "here.toml"
    short = ["--seconds", "0.001", "--array-size", "1MiB", "--skip", "gemm, drive"]
    line = ["hardware", "probe", "-o", str(path), *short]
    assert main([*line, "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)["result"]
    assert (err, result["path"]) == ("", str(path))
    [host] = [part["profile"] for part in result["parts"]]
    assert all(figure["source"] for figure in host["figures"].values())
    assert main(line) == 2
    assert "exists, it will not be overwritten without --force" in capsys.readouterr().err
    assert main([*line, "--force"]) == 0
    out, err = capsys.readouterr()
    assert max(map(len, out.splitlines())) <= 80 + len(str(path))
    assert "Not measured" in out and "STREAM triad" in out
    assert "measure memory ..." in err
    assert out.count("busy") == 0  # a warning, on stderr
    assert main(["hardware", "show", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"][0]["path"] == str(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 0.0}, "seconds is 0.0, it must be above 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"skip": ["disk"]}, "no step is called 'disk': memory, gemm, drive, gpu"),
        ({"drive_bytes": 1}, "drive_bytes is 1, it must be at least"),
        ({"array_bytes": 0}, "array_bytes is 0, it must be at least"),
    ],
)
def test_values_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        probe_hardware(**settings)


def test_a_target_is_checked_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder, name a file"):
        probe_hardware(tmp_path, seconds=3600)


def test_the_drive_past_the_page_cache_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def no_direct(path: str, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(drive, "_IN_MEMORY", set())
    monkeypatch.setattr(os, "open", no_direct)
    figures = drive.probe_drive(0.001, tmp_path, 16 * MIB)
    assert "the page cache dropped before each round" in figures["read_bytes_per_s"].method
    assert set(figures) == {"read_bytes_per_s", "random_reads_per_s", "latency_s"}
    assert list(tmp_path.iterdir()) == []


def test_a_drive_that_cannot_be_measured_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotMeasuredError, match="No such file"):
        drive.probe_drive(0.001, tmp_path / "none")
    monkeypatch.setattr(drive, "_IN_MEMORY", set())
    with pytest.raises(NotMeasuredError, match="MiB free, give a smaller size"):
        drive.probe_drive(0.001, tmp_path, 1 << 60)
    monkeypatch.setattr(drive, "file_system", lambda folder: ("tmpfs", "tmpfs"))
    monkeypatch.setattr(drive, "_IN_MEMORY", {"tmpfs"})
    with pytest.raises(NotMeasuredError, match="lies in memory; name a folder on the drive"):
        drive.probe_drive(0.001, tmp_path)


class FakeNvml(types.ModuleType):
    """Two GPUs of one kind and one of another that answers nothing but its name."""

    NVMLError = type("NVMLError", (Exception,), {})
    NVML_CLOCK_MEM = 2

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.open = False

    def nvmlInit(self) -> None:
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return ["NVIDIA GeForce RTX 4090", b"NVIDIA GeForce RTX 4090", "Other"][handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        if handle == 2:
            raise self.NVMLError("not supported")
        return types.SimpleNamespace(total=25_757_220_864)

    def nvmlDeviceGetMemoryBusWidth(self, handle: int) -> int:
        return 384

    def nvmlDeviceGetMaxClockInfo(self, handle: int, kind: int) -> int:
        return 10_501 if handle < 2 else 0

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: int) -> int:
        return 16

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: int) -> int:
        return 4 if handle < 2 else 99

    def nvmlDeviceGetPowerManagementLimit(self, handle: int) -> int:
        return 450_000


def test_names_and_limits_by_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    first, other = gpu.find_gpus()
    assert (first.name, first.count, first.host_link) == (
        "NVIDIA GeForce RTX 4090",
        2,
        "PCIe 4.0 x16",
    )
    values = {name: figure.value for name, figure in first.figures.items()}
    assert values["memory_bandwidth_bytes_per_s"] == pytest.approx(1008e9, rel=1e-3)
    assert values["host_link_bytes_per_s"] == pytest.approx(31.5e9, rel=1e-3)
    assert (values["memory_bytes"], values["power_w"]) == (25_757_220_864, 450)
    assert set(other.figures) == {"power_w"}
    assert not nvml.open


def test_gpus_that_torch_does_not_see_keep_what_nvml_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    probe = probe_hardware(tmp_path / "m.toml", seconds=0.001, skip=["memory", "gemm", "drive"])
    found = {part.profile.name: part.count for part in probe.parts}
    assert found.pop("nvidia-geforce-rtx-4090") == 2
    assert "sees no NVIDIA GeForce RTX 4090" in probe.missing["gpu NVIDIA GeForce RTX 4090"]
    with pytest.raises(InputError, match="both the GPU of one node"):  # two kinds
        load_hardware(tmp_path / "m.toml")


def test_the_file_of_a_machine_with_gpus_is_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml()
    monkeypatch.setattr(nvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    path = tmp_path / "m.toml"
    probe_hardware(path, seconds=0.001, skip=["memory", "gemm", "drive"])
    cluster = describe_hardware(path)
    assert isinstance(cluster, Cluster)
    assert (cluster.gpus, cluster.profile.name) == (2, "nvidia-geforce-rtx-4090")
    assert cluster.part("host").kind is Kind.HOST


def test_rates_of_torch_with_the_cpu_in_the_place_of_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    figures = gpu.probe_copies(torch, 0.001, "cpu", MIB)
    assert set(figures) == {
        "memory_bandwidth_effective_bytes_per_s",
        "host_link_effective_bytes_per_s",
        "device_to_host_bytes_per_s",
    }
    assert figures["host_link_effective_bytes_per_s"].value > 1e6
    assert probe_torch(torch, 0.001, size=64)["gemm_tflops_bf16"].value > 0
    assert probe_numpy(0.001, 64)["gemm_tflops_fp32"].value > 0


def test_no_gpu_says_what_nvml_said(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)

    def fail() -> None:
        raise nvml.NVMLError("Driver Not Loaded")

    monkeypatch.setattr(nvml, "nvmlInit", fail)
    fake = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: False))
    monkeypatch.setattr(gpu, "find_torch", lambda: fake)
    with pytest.raises(NotMeasuredError, match="NVML: Driver Not Loaded"):
        gpu.find_gpus()
    here = types.SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        get_device_name=lambda index: "AMD Instinct MI300X",
        get_device_properties=lambda index: types.SimpleNamespace(total_memory=192 * 10**9),
    )
    fake.cuda = here
    [found] = gpu.find_gpus()
    assert (found.name, found.count) == ("AMD Instinct MI300X", 2)
    assert gpu.torch_device(types.SimpleNamespace(cuda=here), found.name) == "cuda:0"


def test_a_measurement_repeats_after_one_to_warm_up() -> None:
    values = iter([100.0, 1.0, 3.0, 2.0])
    spread = measure(lambda: next(values), 1e-9)
    assert (spread.median, spread.low, spread.high, spread.rounds) == (2, 1, 3, 3)
    assert rate(1.0, lambda: None)() > 0


def test_sizes_that_fit_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert thread_counts(1) == [1]
    assert thread_counts(6) == [1, 2, 4, 6]
    assert thread_counts(8) == [1, 2, 4, 8]
    assert machine.slug("Intel(R) Xeon(R) Platinum 8480+") == "intel-xeon-platinum-8480"
    assert machine.slug("()") == "this-machine"
    monkeypatch.setattr("moeprof.hardware.probe.memory.available_bytes", lambda: 24 * 100 * MIB)
    monkeypatch.setattr("moeprof.hardware.probe.memory.cache_bytes", lambda: 20 * MIB)
    assert default_array_bytes() == 80 * MIB
    monkeypatch.setattr("moeprof.hardware.probe.memory.cache_bytes", lambda: 300 * MIB)
    assert default_array_bytes() == 100 * MIB
    monkeypatch.setattr("moeprof.hardware.probe.memory.available_bytes", lambda: MIB)
    with pytest.raises(NotMeasuredError, match="too little free memory"):
        default_array_bytes()


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("load", "busy"), [(1.5, True), (0.1, False), (None, False)])
def test_a_busy_machine_is_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: float | None, busy: bool
) -> None:
    monkeypatch.setattr("moeprof.hardware.probe.run.load_per_cpu", lambda: load)
    path = tmp_path / "m.toml"
    probe = probe_hardware(path, skip=["memory", "gemm", "drive"])
    assert ("was busy, load 1.5 a CPU" in probe.warning) is busy
    assert ("# this machine was busy" in path.read_text()) is busy
