"""capture vllm: the user's server with the plugin, its exit code, and what is said at the end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from moeprof.capture.vllm.serve import capture_vllm, describe_served, server_command
from moeprof.cli.main import main
from moeprof.cli.recordings import next_commands
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import synthesize_rows
from tests.capture.vllm.environments import make_environment
from tests.conftest import save

Captured = pytest.CaptureFixture[str]
CAPTURE = ["capture", "vllm", "-o", "t"]
VLLM = ["bin/vllm", "serve"]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    made = make_environment(tmp_path)
    for name, value in made.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.chdir(tmp_path)
    return made


def test_a_server_from_start_to_end(environment: dict[str, str], capfd: Captured) -> None:
    limits = ["--max-size", "5MiB"]
    assert main([*CAPTURE, *limits, "--", *VLLM, "some/model", "--port", "80"]) == 0
    said, summary = capfd.readouterr()
    given, arguments = said.split(" ", 1)
    assert given == "given" and arguments.startswith('["serve", "some/model", "--port", "80"]')
    assert "moeprof" in arguments and str(5 << 20) in arguments
    for words in ("40 tokens of 2 requests", "3 dropped", "moeprof info"):
        assert words in summary


def test_a_server_that_fails_keeps_its_exit_code_and_its_trace(
    environment: dict[str, str], capfd: Captured
) -> None:
    assert main([*CAPTURE, "--json", "--", *VLLM, "m", "--fail"]) == 5
    said, of_server = capfd.readouterr()
    result = json.loads(said)["result"]
    assert "given" in of_server
    assert (result["exit_code"], result["tokens"], result["dropped"]) == (5, 40, 3)
    assert result["prefill_tokens"] + result["decode_tokens"] == 40


def test_a_server_that_records_nothing_is_no_success(
    environment: dict[str, str], capfd: Captured
) -> None:
    assert main([*CAPTURE, "--", "true"]) == 1
    assert "nothing was recorded: the plugin did not begin" in capfd.readouterr().err
    assert main([*CAPTURE, "--", "sh", "-c", "exit 9"]) == 9
    assert "ended before recording began" in capfd.readouterr().err


def test_what_cannot_work_is_said_before_anything_starts(
    environment: dict[str, str], tmp_path: Path
) -> None:
    starts = ["sh", "-c", "touch started"]
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists"):
        capture_vllm(starts, "there")
    with pytest.raises(InputError, match="cannot write"):
        capture_vllm(starts, "/proc/t/t")
    with pytest.raises(InputError, match="max_bytes"):
        capture_vllm(starts, "t", rotate=True)
    with pytest.raises(InputError, match="nothing to start"):
        capture_vllm([], "t")
    assert not (tmp_path / "started").exists()


def test_a_vllm_without_the_plugin_is_told_how_to_get_it(
    environment: dict[str, str], tmp_path: Path
) -> None:
    # -S -I: nothing that is installed is seen.
    python = tmp_path / "bin" / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    python.chmod(0o755)
    (tmp_path / "bin" / "vllm").write_text(f"#!{python}\n")
    with pytest.raises(InputError, match=f"{python} -m pip install moeprof"):
        capture_vllm([*VLLM, "m"], "t")


def test_which_command_is_meant(environment: dict[str, str], tmp_path: Path) -> None:
    vllm = str(tmp_path / "bin" / "vllm")
    for given in (["m", "--x"], ["serve", "m", "--x"], ["vllm", "serve", "m", "--x"]):
        assert server_command(given)[-3:] == ["serve", "m", "--x"]
    assert server_command(["--model", "m"])[1:] == ["serve", "--model", "m"]
    for whole in ([vllm, "serve", "m"], ["sh", "-c", "x"], [sys.executable, "-m", "x"]):
        assert server_command(whole) == whole
    (tmp_path / "folder").mkdir()
    assert server_command(["./folder"])[1:] == ["serve", "./folder"]


def test_without_vllm_it_is_said(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(InputError, match="pip install vllm"):
        server_command(["m"])


def test_what_several_ranks_wrote_is_one_recording(model: MoEModel, tmp_path: Path) -> None:
    for dp in range(2):
        rows, requests = synthesize_rows(model, 30 + dp, requests=3, seed=dp)
        save(tmp_path / "t" / "ranks" / f"dp{dp:02d}-pp00-tp00", model, rows, requests)
    result = describe_served(0, ["vllm"], tmp_path / "t")
    assert (result.tokens, result.writers, result.requests) == (61, 2, 6)
    assert any("moeprof merge" in line for line in next_commands(str(result.path), result.writers))
    assert describe_served(9, ["vllm"], tmp_path / "none").path is None
    (tmp_path / "empty").mkdir()
    assert describe_served(9, ["vllm"], tmp_path / "empty").problems
