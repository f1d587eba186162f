"""Speculative decoding: what was computed is recorded, and the last of each position stands."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import numpy as np

from tests.engines.vllm.recorded import Oracle, Recorded, as_sets
from tests.engines.vllm.server import at_once, serving

logger = logging.getLogger(__name__)
# The random model soon repeats itself, which is what n-grams of the prompt and output foresee.
PROMPTS = {f"s{i}": [30 + i, 60 + i, 90 + i] * 6 for i in range(6)}
SPECULATION = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_max": 3,
    "prompt_lookup_min": 1,
}


def test_rejected_drafts_do_not_hide_what_was_accepted(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.moetrace"
    with serving(
        tiny,
        tmp_path,
        "--enforce-eager",
        f"--speculative-config={json.dumps(SPECULATION)}",
        MOEPROF_OUTPUT=str(path),
        MOEPROF_OPTIONS=json.dumps({"request_names": "plain", "token_ids": True}),
        VLLM_PLUGINS="moeprof",
    ) as server:
        calls = [partial(server.complete, n, prompt, 60) for n, prompt in PROMPTS.items()]
        answers = dict(zip(PROMPTS, at_once(calls, 3), strict=True))
        status = server.settled()
    recorded, oracle = Recorded(path), Oracle(tiny)
    assert status["tokens"] == len(recorded.step)
    assert not status["dropped"]
    again = 0
    for name, prompt in PROMPTS.items():
        ids = prompt + answers[name]["choices"][0]["token_ids"]
        rows = recorded.rows_of(name)
        last = {int(recorded.position[row]): row for row in rows}  # in engine order
        again += len(rows) - len(last)
        places = np.array([last[position] for position in range(len(ids) - 1)])
        assert recorded.token_id is not None
        assert recorded.token_id[places].tolist() == ids[:-1]
        expected = oracle.experts(ids[:-1])
        np.testing.assert_array_equal(as_sets(recorded.experts[places]), as_sets(expected))
        assert recorded.requests[f"cmpl-{name}-0"]["output_tokens"] is None
    assert again > 0
    logger.info("%d of %d rows were computed again behind a rejection", again, len(recorded.step))
