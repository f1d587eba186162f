"""The first model runner with torch.compile on: what is recorded is what transformers routes."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import numpy as np

from tests.engines.vllm.recorded import Oracle, Recorded, as_sets
from tests.engines.vllm.server import Server, at_once, serving
from tests.engines.vllm.tiny_model import VOCABULARY

logger = logging.getLogger(__name__)


def test_compiled_twice(tiny: Path, tmp_path: Path) -> None:
    """The second server finds what the first has compiled, and must write its own buffer."""
    for turn in ("first", "second"):
        path = tmp_path / f"{turn}.moetrace"
        with serving(
            tiny,
            tmp_path,
            "--max-num-batched-tokens=64",
            MOEPROF_OUTPUT=str(path),
            MOEPROF_OPTIONS=json.dumps({"request_names": "plain", "token_ids": True}),
            VLLM_PLUGINS="moeprof",
            VLLM_CACHE_ROOT=str(tmp_path / "cache"),
        ) as server:
            prompts, lengths = _put_under_load(server, seed=len(turn))
            status = server.settled()
        assert "Warming up model for the compilation" in server.log.read_text()
        recorded = Recorded(path)
        assert status["tokens"] == len(recorded.step)
        assert not status["dropped"]
        assert json.loads((path / "manifest.json").read_text())["complete"]
        rows = _compare(recorded, Oracle(tiny), prompts, lengths)
        assert rows == len(recorded.step)
        logger.info("%s server: %d rows equal transformers' routers", turn, rows)


def _put_under_load(
    server: Server, seed: int
) -> tuple[dict[str, list[int]], dict[str, int | None]]:
    """Prompts by name, and how many tokens each generated, None where the client hung up."""
    random = np.random.default_rng(seed)
    shared = random.integers(0, VOCABULARY - 1, 48).tolist()
    prompts = {
        f"r{i}": (shared if i % 2 else []) + random.integers(0, 200, 3 + 9 * i).tolist()
        for i in range(10)
    }
    prompts["again"] = prompts["r9"]  # all of it is in the prefix cache by then
    prompts["aborted"] = random.integers(0, 200, 20).tolist()
    lengths: dict[str, int | None] = {}
    first = [name for name in prompts if name not in ("again", "aborted")]
    calls = []
    for i, name in enumerate(first):
        lengths[name] = 8 + i
        ask = server.stream if i % 3 == 0 else server.complete
        calls.append(partial(ask, name, prompts[name], 8 + i))
    lengths["aborted"] = None
    calls.append(partial(server.stream, "aborted", prompts["aborted"], 400, stop_after=5))
    at_once(calls, 6)
    server.complete("again", prompts["again"], 4)
    lengths["again"] = 4
    return prompts, lengths


def _compare(
    recorded: Recorded,
    oracle: Oracle,
    prompts: dict[str, list[int]],
    lengths: dict[str, int | None],
) -> int:
    compared = 0
    assert recorded.token_id is not None
    for name, prompt in prompts.items():
        rows = recorded.rows_of(name)
        position, ids = recorded.position[rows], recorded.token_id[rows].tolist()
        assert position.tolist() == list(range(position[0], position[0] + len(rows)))
        length, request = lengths[name], recorded.requests[f"cmpl-{name}-0"]
        if length is None:
            assert 5 <= request["output_tokens"] < 400
        else:
            assert position[-1] + 1 == len(prompt) + length - 1
            assert request["output_tokens"] == length
        if name == "again":
            assert position[0] >= 16  # at least a block came out of the cache
        assert ids[: max(0, len(prompt) - position[0])] == prompt[position[0] :]
        expected = oracle.experts(prompt[: position[0]] + ids)[position[0] :]
        np.testing.assert_array_equal(as_sets(recorded.experts[rows]), as_sets(expected))
        np.testing.assert_array_equal(recorded.phase[rows], position >= len(prompt))
        compared += len(rows)
    return compared
