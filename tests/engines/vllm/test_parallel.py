"""Two ranks of each kind: every row once, and what transformers routes."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.engines.vllm.recorded import Oracle, as_sets
from tests.engines.vllm.server import Server, at_once, serving

logger = logging.getLogger(__name__)
PROMPTS = {f"p{i}": list(range(5 * i, 5 * i + 12 + 3 * i)) for i in range(8)}
TOKENS = 6
# Not on a CPU with 0.32, whoever records: expert parallelism, whose kernel (cpu_fused_moe.cpp)
# takes ids of all experts for those of its own and crashes; data parallelism of an MoE model, whose
# first forward raises NotImplementedError (all_gatherv of CpuCommunicator).
KINDS = {
    "tensor": ["--tensor-parallel-size=2", "--enforce-eager"],
    # Eager, the CPU runner of 0.32 makes no buffer for what the first stage sends.
    "pipeline": ["--pipeline-parallel-size=2"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks(tiny: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t.moetrace"
    with serving(
        tiny,
        tmp_path,
        *KINDS[kind],
        MOEPROF_OUTPUT=str(path),
        MOEPROF_OPTIONS=json.dumps({"request_names": "plain", "token_ids": True}),
        VLLM_PLUGINS="moeprof",
    ) as server:
        answers = _load(server)
        status = server.settled()
    assert not status["errors"]
    assert len(status["ranks"]) == 2
    written = _rows(path)
    assert len({rank for rank, *_ in written}) == (1 if kind == "tensor" else 2)
    rows = _compare(written, answers, Oracle(tiny))
    logger.info("%s: %d choices of a layer equal transformers' routers", kind, rows)


def _load(server: Server) -> dict[str, list[int]]:
    calls = [partial(server.complete, n, prompt, TOKENS) for n, prompt in PROMPTS.items()]
    found = zip(PROMPTS, at_once(calls, 6), strict=True)
    return {n: PROMPTS[n] + answer["choices"][0]["token_ids"] for n, answer in found}


Row = tuple[str, str, int, int, tuple[int, ...]]  # rank, request, position, layer, experts


def _rows(path: Path) -> list[Row]:
    folders = sorted((path / "ranks").iterdir()) if (path / "ranks").is_dir() else [path]
    rows: list[Row] = []
    for folder in folders:
        assert json.loads((folder / "manifest.json").read_text())["complete"]
        requests = pa.ipc.open_stream(folder / "requests.arrows").read_all().to_pylist()
        names = {row["index"]: row["name"].split("-")[1] for row in requests}
        for file in (folder / "segments").glob("*.arrows"):
            for row in pa.ipc.open_stream(file).read_all().to_pylist():
                for column in [c for c in row if c.startswith("experts.")]:
                    layer = int(column.split(".")[1])
                    chosen = tuple(row[column])
                    name = names[row["request"]]
                    rows.append((folder.name, name, row["position"], layer, chosen))
    return rows


def _compare(rows: list[Row], answers: dict[str, list[int]], oracle: Oracle) -> int:
    """Each layer of each token was recorded by one rank, once."""
    found = {(name, position, layer): chosen for _, name, position, layer, chosen in rows}
    assert len(found) == len(rows)
    for name, ids in answers.items():
        expected = as_sets(oracle.experts(ids[:-1]))
        for position in range(len(ids) - 1):
            for slot, layer in enumerate((1, 2, 3)):
                chosen = np.sort(found.pop((name, position, layer)))
                np.testing.assert_array_equal(chosen, expected[position, slot])
    assert not found
    return len(rows)
