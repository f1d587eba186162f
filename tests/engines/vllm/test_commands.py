"""`capture vllm` on a real server: started, switched by commands, ended by a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from moeprof import open_trace, validate_trace
from tests.engines.vllm.server import PYTHON, ROOT, Server, at_once, free_port, wait_until_up

PROMPTS = [list(range(10 + i, 40 + 3 * i)) for i in range(6)]
TOKENS_EACH = 5


def test_a_server_that_the_command_starts(tiny: Path, tmp_path: Path) -> None:
    port = free_port()
    url, first = f"http://127.0.0.1:{port}", tmp_path / "first.moetrace"
    environment = _environment(tmp_path)
    engine = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny)]
    engine += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    engine += ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
    engine += ["--api-key", "k3y"]
    capture = ["capture", "vllm", "--json", "-o", str(first), "--", *engine]
    log = tmp_path / "server.log"
    with log.open("wb") as err, (tmp_path / "said.json").open("wb") as out:
        process = subprocess.Popen(
            [PYTHON, "-m", "moeprof", *capture],
            env=environment,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    server = Server(process, port, log)
    try:
        wait_until_up(server)
        _only_the_token_opens(server)
        _ask(server)
        moeprof = partial(_moeprof, environment)
        _switched(server, moeprof, url, first, tmp_path)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(90)
    result = json.loads((tmp_path / "said.json").read_text())["result"]
    assert code == result["exit_code"]
    assert result["tokens"] == _expected() and result["dropped"] == 0
    for name in ("first", "second"):
        info = validate_trace(tmp_path / f"{name}.moetrace")
        assert info.problems == [] and info.complete and info.tokens == _expected()
    assert open_trace(tmp_path / "second.moetrace").top_k == 2


def _expected() -> int:
    """Rows of PROMPTS: the last generated token of each is not routed any more."""
    return sum(len(prompt) + TOKENS_EACH - 1 for prompt in PROMPTS)


def _ask(server: Server, other: int = 0) -> None:
    """All prompts, from several clients. With `other` they are not in the prefix cache."""

    def complete(number: int) -> None:
        body = {
            "model": "tiny",
            "prompt": [token + other for token in PROMPTS[number]],
            "max_tokens": TOKENS_EACH,
            "ignore_eos": True,
        }
        answer = server.call("/v1/completions", body, Authorization="Bearer k3y")
        assert answer["usage"]["completion_tokens"] == TOKENS_EACH

    at_once([partial(complete, number) for number in range(len(PROMPTS))], 3)


def _only_the_token_opens(server: Server) -> None:
    """vLLM's API key guards other paths; ours take the token, from this machine too."""
    for headers in ({}, {"Authorization": "Bearer k3y"}, {"Authorization": "Bearer wrong"}):
        assert "MOEPROF_TOKEN" in server.call("/moeprof/status", **headers)["error"]
        assert "MOEPROF_TOKEN" in server.call("/moeprof/stop", {}, **headers)["error"]
    assert server.call("/moeprof/status", Authorization="Bearer t0ken")["recording"]


def _switched(server: Server, moeprof: Any, url: str, first: Path, tmp_path: Path) -> None:
    code, status = moeprof("capture", "status", "--url", url)
    assert code == 0 and status["recording"] and status["path"] == str(first)
    second = str(tmp_path / "second.moetrace")
    assert moeprof("capture", "start", "--url", url, "-o", second)[0] == 1  # records already
    code, stopped = moeprof("capture", "stop", "--url", url)
    assert code == 0 and not stopped["recording"] and stopped["tokens"] == _expected()
    assert moeprof("capture", "stop", "--url", url)[0] == 1
    _ask(server)  # is not recorded
    assert moeprof("capture", "start", "--url", url, "-o", str(first))[0] == 1  # exists
    code, started = moeprof("capture", "start", "--url", url, "-o", second, "--max-size", "9MiB")
    assert code == 0 and started["recording"] and started["tokens"] == 0
    _ask(server, other=100)
    code, report = moeprof("doctor", "--url", url, "-o", str(tmp_path))
    plugin = next(check for check in report["checks"] if check["name"] == "server plugin")
    assert plugin["ok"] and second in plugin["detail"], report


def _moeprof(environment: dict[str, str], *arguments: str) -> tuple[int, Any]:
    done = subprocess.run(
        [PYTHON, "-m", "moeprof", *arguments, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, json.loads(done.stdout)["result"] if done.stdout else done.stderr


def _environment(work: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(work.parent / "vllm-cache"),
        "MOEPROF_TOKEN": "t0ken",
    }
