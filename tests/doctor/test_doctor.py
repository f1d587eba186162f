"""What each check says of a machine as it should be, and of one that is not."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from moeprof.capture.vllm.plugins import ENDPOINT, GENERAL, Plugins
from moeprof.cli.doctor import doctor_text
from moeprof.doctor import Check, DoctorResult, machine, output, plugin, software
from moeprof.doctor.engines import check_engines
from moeprof.doctor.gpu import check_gpus
from moeprof.doctor.machine import check_limits
from moeprof.doctor.output import check_output
from moeprof.doctor.plugin import FoundVllm, check_plugin
from moeprof.doctor.software import check_software, release

READY = Plugins({GENERAL: ["moeprof", "models"], ENDPOINT: ["moeprof"]}, "0.32.0", "0.1.0")


def named(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def failing(checks: list[Check]) -> dict[str, Check]:
    """Those that would stop a recording; each says what to do."""
    failed = {check.name: check for check in checks if check.needed and not check.ok}
    assert all(check.remedy for check in failed.values())
    return failed


def test_versions_are_read_as_numbers() -> None:
    assert release("2.13.0+cpu") == (2, 13, 0) and release("5") == (5,) and release("x") == ()


def test_a_package_that_is_missing_or_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=2.0", "pyarrow>=16", "typer>=0.12", "torch>=2.6 ; extra == 'capture'"]
    found = {"numpy": "1.25.9", "typer": "0.12", "transformers": "4.57.0"}
    monkeypatch.setattr(software, "requires", lambda name: wanted)
    monkeypatch.setattr(software, "installed", lambda *names: found.get(names[0]))
    checks = named(check_software())
    assert failing(list(checks.values())).keys() == {"moeprof"}
    assert "numpy, pyarrow" in checks["moeprof"].detail
    assert not checks["torch"].ok and "older than 5.0" in checks["transformers"].detail
    found.update(numpy="2.0", pyarrow="16.0.0")
    assert named(check_software())["moeprof"].ok


class Nvml:
    """Two GPUs of one kind and one of another."""

    names = ("A", b"B", "A")

    def __getattr__(self, name: str) -> Any:
        return {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: len(self.names),
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda index: self.names[index],
            "nvmlSystemGetDriverVersion": lambda: "580.1",
        }[name]


def test_gpus_are_counted_by_name() -> None:
    assert check_gpus(Nvml()).detail == "2 x A, 1 x B, driver 580.1"


def test_a_driver_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Nvml):
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("Driver/library version mismatch")

    monkeypatch.setattr(Path, "glob", lambda self, pattern: [])
    assert check_gpus(Broken()).ok  # no GPU either: nothing is wrong
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [Path("/dev/nvidia0")])
    broken = check_gpus(Broken())
    assert not broken.ok and "mismatch" in broken.detail and broken.remedy


@pytest.mark.parametrize(
    ("version", "ok", "words"),
    [
        ("0.32.0", True, "capture vllm"),
        ("0.32.1+cpu", True, "capture vllm"),
        ("0.33.0", True, "tested with 0.32"),
        ("0.31.2", False, "capture server"),
        ("0.9.0", False, "too old"),
    ],
)
def test_engines_say_how_they_are_recorded(version: str, ok: bool, words: str) -> None:
    found = FoundVllm("/x/python", Plugins({}, version, None))
    check = named(check_engines(found, {}))["vllm"]
    assert check.ok is ok and words in check.detail and not check.needed
    assert not any(check.needed for check in check_engines(None, {}))


def test_a_vllm_without_the_plugin_stops_a_recording() -> None:
    for plugins in (Plugins({}, "0.32.0", None), Plugins({GENERAL: ["models"]}, "0.32.0", "0.0.1")):
        failed = failing(check_plugin(FoundVllm("/x/python", plugins), {}))
        assert "/x/python -m pip install" in failed["vllm plugin"].remedy
    assert failing(check_plugin(FoundVllm("/x/python", READY), {})) == {}
    assert failing(check_plugin(None, {})) == {}
    assert not named(check_plugin(FoundVllm("/x/vllm", None), {}))["vllm plugin"].ok


@pytest.mark.parametrize("current", ["", "models"])
def test_plugins_that_are_restricted_stop_a_recording(current: str) -> None:
    failed = failing(check_plugin(FoundVllm("p", READY), {"VLLM_PLUGINS": current}))
    fixed = failed["VLLM_PLUGINS"].remedy.partition("VLLM_PLUGINS=")[2]
    assert failing(check_plugin(FoundVllm("p", READY), {"VLLM_PLUGINS": fixed})) == {}


def test_the_environment_is_read_as_the_plugin_reads_it(tmp_path: Path) -> None:
    good = {"MOEPROF_OUTPUT": str(tmp_path / "t"), "MOEPROF_OPTIONS": '{"max_bytes": 5000000}'}
    assert str(tmp_path / "t") in named(check_plugin(None, good))["MOEPROF_OUTPUT"].detail
    for options in ("{", "[]", '{"shout": 1}', '{"rotate": true}'):
        failed = failing(check_plugin(None, {**good, "MOEPROF_OPTIONS": options}))
        assert failed.keys() == {"MOEPROF_OUTPUT"}


def test_tokens_are_not_shown() -> None:
    checks = check_plugin(None, {"MOEPROF_TOKEN": "s3cret"})
    assert "MOEPROF_OUTPUT_DIR" in named(checks)["control"].remedy
    assert "s3cret" not in str(checks)


def test_limits_that_end_a_recording_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_NOFILE: 64, resource.RLIMIT_FSIZE: 1 << 20}
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (limits[which], -1))
    monkeypatch.setattr(machine, "_tasks_left", lambda: 3)
    assert failing(check_limits()).keys() == {"open files", "file size", "threads"}
    limits.update({resource.RLIMIT_NOFILE: -1, resource.RLIMIT_FSIZE: -1})
    monkeypatch.setattr(machine, "_tasks_left", lambda: None)
    assert failing(check_limits()) == {}


def test_tasks_left_are_those_of_the_control_group(tmp_path: Path) -> None:
    assert machine._tasks_left(tmp_path) is None
    (tmp_path / "pids.current").write_text("90\n")
    for text, left in (("max\n", None), ("100\n", 10)):
        (tmp_path / "pids.max").write_text(text)
        assert machine._tasks_left(tmp_path) == left


def test_a_folder_as_it_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MAX_WRITTEN_BYTES", 2 << 20)
    for path in (tmp_path, tmp_path / "run.moetrace", tmp_path / "a" / "b" / "t"):
        checks = named(check_output(path))
        assert checks.keys() == {"output", "permissions", "disk speed"}
        assert checks["permissions"].ok and str(tmp_path) in checks["output"].detail
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failing(check_output(Path("/proc/t"))).keys() == {"output"}
    monkeypatch.setattr(output, "MAX_WRITTEN_BYTES", 1 << 20)
    monkeypatch.setattr(output, "MIN_FREE_BYTES", 1 << 62)
    chmod = os.chmod
    monkeypatch.setattr(output.os, "chmod", lambda name, mode: chmod(name, 0o644))
    monkeypatch.setattr(output.os, "fsync", lambda descriptor: time.sleep(0.5))
    checks = named(check_output(tmp_path))
    assert failing(list(checks.values())).keys() == {"output"}
    assert "0644" in checks["permissions"].detail and not checks["disk speed"].ok
    assert all(check.remedy for check in checks.values())


def test_a_disk_that_fills_up_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, block: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.os, "write", full)
    assert "No space left" in failing(check_output(tmp_path))["disk speed"].detail
    assert list(tmp_path.iterdir()) == []


def test_the_text_fits_a_terminal_of_100_columns() -> None:
    long = Check("a name", False, "word " * 80 + "\x1b[31m", True, "do " * 60)
    text = doctor_text(DoctorResult.of([long, Check("b", True, "fine"), Check("c", False, "no")]))
    assert all(len(line) <= 100 for line in text.splitlines()) and "\x1b" not in text
    assert text.splitlines()[-1] == "would stop a recording: a name"
    assert [line[:4] for line in text.splitlines() if "  b" in line[:8] or "  c" in line[:8]] == [
        "ok  ",
        "-   ",
    ]


def test_a_vllm_is_looked_for_beside_and_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "find_vllm", lambda: None)
    monkeypatch.setattr(plugin, "installed", lambda *names: None)
    assert plugin.look_for_vllm({}) is None
    monkeypatch.setattr(plugin, "find_vllm", lambda: "/nowhere/vllm")
    found = plugin.look_for_vllm({})
    assert found is not None and found.plugins is None
