"""Minimal readers of the public recordings that stand beside the repository, where they do.

For tests and benchmarks alone: each reads one known file and trusts it.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moeprof.model import MoEModel
from moeprof.trace import Phase, Request, TokenRows, Trace

SHIPPED = Path(__file__).parents[1] / "traces" / "tiny-m3.moetrace"


def shared_folder() -> Path | None:
    """The folder of recordings: $MOEPROF_SHARED, or shared/ beside one of our parents."""
    named = os.environ.get("MOEPROF_SHARED")
    places = [Path(named)] if named else [p / "shared" for p in Path(__file__).resolve().parents]
    return next((place / "traces" for place in places if (place / "traces").is_dir()), None)


def recording(name: str) -> Trace:
    """The recording called `name`; skips the test where the folder is absent."""
    folder = shared_folder()
    if folder is None:
        pytest.skip("no shared/traces beside the repository and no MOEPROF_SHARED")
    return READERS[name](folder)


def _trace(
    name: str,
    ids: list[NDArray[Any]],
    experts: int,
    layers: list[int],
    *,
    labels: list[str] | None = None,
    prompts: list[int] | None = None,
) -> Trace:
    """A trace of requests one after the other; a prompt is one step, then a step a token."""
    lengths = [len(part) for part in ids]
    prompts = prompts or [0] * len(ids)
    request = np.repeat(np.arange(len(ids), dtype=np.int32), lengths)
    position = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
    decode = position >= np.array(prompts)[request]
    rows = TokenRows(
        step=np.cumsum(decode | (position == 0)) - 1,
        request=request,
        position=position,
        phase=np.where(decode, Phase.DECODE, Phase.PREFILL).astype(np.int8),
        experts=np.concatenate(ids).astype(np.uint8 if experts <= 256 else np.uint16),
    )
    model = _model(name, layers, experts, ids[0].shape[2])
    requests = [
        Request(i, labels[i] if labels else None, prompt_tokens=prompts[i]) for i in range(len(ids))
    ]
    return Trace.in_memory(model, rows, requests)


def _model(name: str, layers: list[int], experts: int, top_k: int) -> MoEModel:
    return MoEModel(name, name, 1, max(layers) + 1, tuple(layers), experts, top_k)


def _deepseek(folder: Path) -> Trace:
    ids, labels = [], []
    for file in sorted((folder / "deepseek-v4-flash").glob("*.csv.gz")):
        with gzip.open(file, "rt") as lines:
            rows = np.loadtxt(lines, delimiter=",", skiprows=1, usecols=range(9))
        ids.append(rows[:, 3:].reshape(-1, 40, 6).astype(int))
        kind = "json" if "_b" in file.name else "python" if "_c" in file.name else "html"
        labels.append(kind)
    return _trace("deepseek-v4-flash", ids, 256, list(range(3, 43)), labels=labels)


def _gpt_oss(folder: Path) -> Trace:
    data = np.load(folder / "gpt-oss-20b" / "sample_traces.npz")
    ids = [cell[:n] for cell, n in zip(data["experts"], data["n_tokens"], strict=True)]
    ids = [part[(part >= 0).all(axis=(1, 2))] for part in ids]  # the last token is never routed
    labels = [label.split("/")[0] for label in data["labels"].tolist()]
    return _trace("gpt-oss-20b", ids, 32, list(range(24)), labels=labels)


def _olmoe(folder: Path) -> Trace:
    lines = (folder / "olmoe-1b-7b" / "trace_olmoe_299.jsonl").read_text().splitlines()
    return _trace(
        "olmoe-1b-7b", [np.array([json.loads(x)["layers"] for x in lines])], 64, list(range(16))
    )


def _granite(folder: Path) -> Trace:
    data = json.loads((folder / "granite-3.0-1b" / "moe_expert_trace.json").read_text())
    parts = data["prompts"]
    ids = [np.array(part["prefill"] + part["decode"]) for part in parts.values()]
    prompts = [part["prompt_len"] for part in parts.values()]
    return _trace("granite-3.0-1b", ids, 32, list(range(24)), labels=list(parts), prompts=prompts)


def _toy(folder: Path) -> Trace:
    with (folder / "event-atomic-toy" / "events.csv").open() as lines:
        sets = [[int(e) for e in row["requested_experts"].split()] for row in csv.DictReader(lines)]
    ids = np.array(sets).reshape(-1, 3, 2)
    return _trace("event-atomic-toy", [ids], 4, [0, 1, 2])


def _qwen(folder: Path) -> Trace:
    """The traffic of the engine's log: each forward pass after the profiling ones is a step."""
    with gzip.open(folder / "messy" / "vllm-route-log-with-warmup.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines][1:]
    index = np.array([row["token_idx"] for row in rows])
    ids = np.array([row["topk_ids"] for row in rows])[:, None]
    step = np.cumsum(index == 0) - 1
    # Dummy batches of the engine: many rows, all alike.
    alike = [
        len(np.unique(ids[step == s], axis=0)) == 1 < (step == s).sum() for s in range(step[-1] + 1)
    ]
    real = ~np.array(alike)[step]
    index, ids, step = index[real], ids[real], step[real]
    # The log does not say which request a row is of: its place in the batch stands in for it.
    position = np.zeros(len(index), np.int32)
    for place in np.unique(index):
        position[index == place] = np.arange((index == place).sum())
    tokens = TokenRows(
        step=step,
        request=index.astype(np.int32),
        position=position,
        phase=None,
        experts=ids.astype(np.uint8),
    )
    return Trace.in_memory(_model("qwen1.5-moe", [0], 60, 4), tokens)


def _flame(folder: Path) -> Trace:
    """Two layers of gate matrices; rows of eight sequences of 64 tokens at a time interleave."""
    chosen = []
    for layer in (2, 3):
        file = folder / "messy" / f"encoder_layer{layer}.csv.gz"
        with gzip.open(file, "rt") as lines:
            gates = np.loadtxt(lines, delimiter=",", skiprows=1)[:, 2:]
        chosen.append(np.argsort(-gates, axis=1)[:, :6])
    row = np.arange(len(chosen[0]))
    tokens = TokenRows(
        step=row // 8,
        request=(row % 8 + 8 * (row // 512)).astype(np.int32),
        position=(row % 512 // 8).astype(np.int32),
        phase=None,
        experts=np.stack(chosen, axis=1).astype(np.uint8),
    )
    return Trace.in_memory(_model("flame-moe-290m", [2, 3], 64, 6), tokens)


READERS: dict[str, Callable[[Path], Trace]] = {
    "deepseek-v4-flash": _deepseek,
    "gpt-oss-20b": _gpt_oss,
    "olmoe-1b-7b": _olmoe,
    "granite-3.0-1b": _granite,
    "event-atomic-toy": _toy,
    "qwen1.5-moe": _qwen,
    "flame-moe-290m": _flame,
}
