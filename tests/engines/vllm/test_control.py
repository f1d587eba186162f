"""A running server is switched, watched, and killed."""

from __future__ import annotations

import base64
import json
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moeprof import open_trace
from tests.engines.vllm.recorded import Oracle, Recorded, as_sets
from tests.engines.vllm.server import Server, at_once, serving

logger = logging.getLogger(__name__)
PROMPTS = {f"n{i}": list(range(10 + i, 40 + 3 * i)) for i in range(8)}


def test_start_stop_and_kill(tiny: Path, tmp_path: Path) -> None:
    oracle = Oracle(tiny)
    with serving(tiny, tmp_path, "--enforce-eager", VLLM_PLUGINS="moeprof") as server:
        assert not server.status()["recording"]
        _ask(server, "before")
        _start_and_stop(server, oracle, tmp_path / "first.moetrace")
        _refusals(server, tmp_path / "first.moetrace")
        _ask(server, "between")
        _joined_in_the_middle(server, oracle, tmp_path / "middle.moetrace")
        _watched(server, tmp_path / "watched.moetrace")
        _killed(server, oracle, tmp_path / "killed.moetrace")


def _ask(server: Server, prefix: str, tokens: int = 6) -> list[Any]:
    calls = [
        partial(server.complete, f"{prefix}-{name}", prompt, tokens)
        for name, prompt in PROMPTS.items()
    ]
    return at_once(calls, 4)


def _start(server: Server, path: Path, **more: Any) -> dict[str, Any]:
    options = {"output": str(path), "request_names": "plain", "token_ids": True} | more
    answer: dict[str, Any] = server.call("/moeprof/start", options)
    return answer


def _stop(server: Server) -> dict[str, Any]:
    server.settled()
    server.call("/moeprof/stop", {})
    for _ in range(50):
        status = server.status()
        if not status["ranks"][0]["closing"]:
            return status
        time.sleep(0.1)
    raise AssertionError("the trace was never closed")


def _equal(recorded: Recorded, oracle: Oracle, known: dict[str, list[int]] | None = None) -> int:
    """Rows that equal what transformers routes. `known`: token ids of whole sequences."""
    assert recorded.token_id is not None
    for number in np.unique(recorded.request):
        rows = np.flatnonzero(recorded.request == number)
        first = int(recorded.position[rows[0]])
        name = next(n for n, r in recorded.requests.items() if r["index"] == number)
        before = [] if known is None else known[name][:first]
        if first and known is None:
            before = PROMPTS[name.split("-")[2]][:first]
        expected = oracle.experts(before + recorded.token_id[rows].tolist())[first:]
        np.testing.assert_array_equal(as_sets(recorded.experts[rows]), as_sets(expected))
    return len(recorded.step)


def _start_and_stop(server: Server, oracle: Oracle, path: Path) -> None:
    assert _start(server, path)["recording"]
    _ask(server, "first")
    status = _stop(server)
    assert not status["recording"]
    recorded = Recorded(path)
    assert status["tokens"] == len(recorded.step) == _equal(recorded, oracle)
    assert set(recorded.requests) == {f"cmpl-first-{name}-0" for name in PROMPTS}
    assert recorded.step[0] > 0  # forwards before the recording count
    assert json.loads((path / "manifest.json").read_text())["complete"]
    logger.info("started and stopped: %d rows equal transformers' routers", len(recorded.step))


def _refusals(server: Server, existing: Path) -> None:
    assert "exists" in str(_start(server, existing))
    assert "max_bytes" in str(_start(server, existing.with_name("small"), max_bytes=10))
    assert not server.status()["recording"]


def _joined_in_the_middle(server: Server, oracle: Oracle, path: Path) -> None:
    """Recording starts while requests run: their rows from then on, at their true positions."""
    prompt = list(range(50, 80))
    running = partial(server.complete, "long", prompt, 300)

    def join() -> None:
        time.sleep(0.3)
        assert _start(server, path)["recording"]

    answer, _ = at_once([running, join], 2)
    status = _stop(server)
    recorded = Recorded(path)
    ids = prompt + answer["choices"][0]["token_ids"]
    request = recorded.requests["cmpl-long-0"]
    assert request["arrival_s"] is None
    assert request["prompt_tokens"] == len(prompt)
    assert request["output_tokens"] == 300
    assert 0 < recorded.position[0] < recorded.position[-1] == len(ids) - 2
    assert _equal(recorded, oracle, {"cmpl-long-0": ids}) == status["tokens"]
    logger.info("joined at position %d of a running request", recorded.position[0])


def _watched(server: Server, path: Path) -> None:
    _start(server, path)
    _ask(server, "watched")
    server.settled()
    rank = server.call("/moeprof/recent?after=0")["ranks"][0]
    table = pa.ipc.open_stream(base64.b64decode(rank["rows"])).read_all()
    assert "token_id" not in table.column_names
    recorded = Recorded(path)
    assert table["step"].to_pylist() == recorded.step.tolist()
    assert table["experts.2"].to_pylist() == recorded.experts[:, 1].tolist()
    middle = int(np.median(recorded.step))
    rank = server.call(f"/moeprof/recent?after={middle}")["ranks"][0]
    table = pa.ipc.open_stream(base64.b64decode(rank["rows"])).read_all()
    assert table["step"].to_pylist() == recorded.step[recorded.step > middle].tolist()
    _stop(server)


def _killed(server: Server, oracle: Oracle, path: Path) -> None:
    """What was flushed opens, and is right; the rest is missing, at most a second of it."""
    _start(server, path)
    _ask(server, "killed")
    done = server.settled()["tokens"]
    endless = [partial(_until_killed, server, f"killed-n{i}-endless") for i in range(3)]
    at_once([*endless, partial(_kill_soon, server)], 4)
    recorded = Recorded(path)
    assert len(recorded.step) >= done
    rows = np.isin(
        recorded.request, [recorded.requests[f"cmpl-killed-{n}-0"]["index"] for n in PROMPTS]
    )
    assert rows.sum() == done
    opened = open_trace(path)
    assert not opened.manifest.complete
    assert _equal(recorded, oracle) == opened.tokens
    logger.info("killed with -9: %d rows open and equal transformers' routers", len(rows))


def _until_killed(server: Server, name: str) -> None:
    try:
        server.stream(name, PROMPTS[name.split("-")[1]], 400)
    except OSError:
        return


def _kill_soon(server: Server) -> None:
    time.sleep(1.5)
    server.kill()
