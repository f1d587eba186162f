"""Recorded ids equal those that the server itself returns, row by row, under load."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.engines.vllm.recorded import Recorded, as_sets, returned_experts
from tests.engines.vllm.server import at_once, serving
from tests.engines.vllm.tiny_model import VOCABULARY

logger = logging.getLogger(__name__)


def test_every_recorded_row_is_the_one_the_server_returns(tiny: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shared = random.integers(0, VOCABULARY - 1, 40).tolist()  # prefix-cache hits
    prompts = {
        f"load-{i}": (shared if i % 3 == 0 else []) + random.integers(0, 200, 5 + 7 * i).tolist()
        for i in range(12)
    }
    path = tmp_path / "t.moetrace"
    with serving(
        tiny,
        tmp_path,
        "--enforce-eager",
        "--enable-return-routed-experts",
        "--max-num-batched-tokens=64",  # prompts come in chunks
        second_runner=True,
        MOEPROF_OUTPUT=str(path),
        MOEPROF_OPTIONS=json.dumps({"request_names": "plain", "token_ids": True}),
        VLLM_PLUGINS="moeprof",
    ) as server:
        calls = [
            partial(server.complete, name, prompt, 6 + i % 5, prompt_logprobs=None)
            for i, (name, prompt) in enumerate(prompts.items())
        ]
        answers = dict(zip(prompts, at_once(calls, 6), strict=True))
        status = server.settled()
    recorded = Recorded(path)
    compared = sum(_compare(recorded, n, prompts[n], answers[n]) for n in prompts)
    assert compared == status["tokens"] == len(recorded.step) > 300
    assert not status["dropped"]
    logger.info("%d rows of %d requests equal what the server returned", compared, len(prompts))


def _compare(recorded: Recorded, name: str, prompt: list[int], answer: dict[str, Any]) -> int:
    rows = recorded.rows_of(name)
    ids = prompt + answer["choices"][0]["token_ids"]
    position = recorded.position[rows]
    returned = returned_experts(answer)
    assert len(returned) == len(ids) - 1
    # What the prefix cache had was not computed for this request, and everything behind it was.
    assert position.tolist() == list(range(position[0], len(returned)))
    np.testing.assert_array_equal(as_sets(recorded.experts[rows]), as_sets(returned[position]))
    assert recorded.token_id is not None
    assert recorded.token_id[rows].tolist() == [ids[p] for p in position]
    np.testing.assert_array_equal(recorded.phase[rows], position >= len(prompt))
    request = recorded.requests[f"cmpl-{name}-0"]
    assert request["prompt_tokens"] == len(prompt)
    assert request["output_tokens"] == len(answer["choices"][0]["token_ids"])
    return len(rows)
