"""What serving simulators are given, read by readers that follow their sources.

LLMServingSim 5daddb2 (serving/core/router.py, gate_function.py), inference-sim f90a1e3
(sim/workload/tracev2.go, replay.go), aiconfigurator 095f58a (collector/helper.py,
case_generator.py).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import Request, TokenRows, Trace, open_trace, write_counts
from moeprof.trace.formats import export_trace
from moeprof.trace.formats.power_law import (
    ALPHAS,
    busiest_group,
    distances,
    quantile_shares,
    sweep,
)
from tests.conftest import save


def served(tmp_path: Path, model: MoEModel, *, arrivals: bool = True, ids: bool = True) -> Trace:
    """Request 0: 5 prompt tokens, 4 run later. Request 1: 3 and 2, and it came 1.5 s before.

    Request 2 has a row without a phase, request 3 stops inside its stated prompt.
    """
    lengths = [(0, 5, 9), (1, 3, 5), (2, 0, 2), (3, 2, 2)]
    request = np.concatenate([np.full(n, r) for r, _, n in lengths]).astype(np.int32)
    position = np.concatenate([np.arange(n) for _, _, n in lengths]).astype(np.int32)
    phase = np.concatenate([(np.arange(n) >= prompt) for _, prompt, n in lengths]).astype(np.int8)
    phase[request == 2] = -1
    phase[request == 3] = 0
    rng = np.random.default_rng(0)
    shape = (len(request), len(model.moe_layers), model.experts)
    rows = TokenRows(
        step=np.arange(len(request)),
        request=request,
        position=position,
        phase=phase,
        experts=np.argsort(rng.random(shape), axis=2)[:, :, : model.top_k].astype(np.uint8),
        token_id=np.arange(100, 100 + len(request), dtype=np.int32) if ids else None,
    )
    came = [3.5, 2.0, 2.5, 4.0] if arrivals else [None] * 4
    stated = {3: 9}
    requests = [Request(r, arrival_s=came[r], prompt_tokens=stated.get(r)) for r in range(4)]
    return open_trace(save(tmp_path / "served.moetrace", model, rows, requests))


def exported(trace: Trace, format: str, path: Path) -> tuple[str, Any]:
    result = export_trace(trace, path, format, force=True)
    return path.read_text(), result


def load_requests(text: str) -> list[dict[str, Any]]:
    """Router.load_requests and _load_flat_request: `output_toks` becomes the whole length."""
    pending = [
        {
            "input_toks": int(row["input_toks"]),
            "output_toks": int(row["input_toks"] + row["output_toks"]),
            "arrival_time_ns": int(row["arrival_time_ns"]),
            "input_hash_ids": row.get("input_tok_ids", []),
            "output_hash_ids": row.get("output_tok_ids", []),
        }
        for row in map(json.loads, text.splitlines())
        if "sub_requests" not in row
    ]
    return sorted(pending, key=lambda row: row["arrival_time_ns"])


def test_requests_for_llmservingsim(tmp_path: Path, model: MoEModel) -> None:
    text, result = exported(served(tmp_path, model), "llmservingsim", tmp_path / "r.jsonl")
    second, first = load_requests(text)[1], load_requests(text)[0]
    assert result.rows == 2 and sum(result.skipped.values()) == 2 and result.notes == []
    assert (first["input_toks"], first["output_toks"]) == (3, 3 + 3)  # the last was only sampled
    assert (second["input_toks"], second["output_toks"]) == (5, 5 + 5)
    assert first["arrival_time_ns"] == 0 and second["arrival_time_ns"] == 1_500_000_000
    assert second["input_hash_ids"] == [100, 101, 102, 103, 104]
    assert second["output_hash_ids"] == [105, 106, 107, 108]


def test_requests_without_arrivals_and_token_ids(tmp_path: Path, model: MoEModel) -> None:
    trace = served(tmp_path, model, arrivals=False, ids=False)
    text, result = exported(trace, "llmservingsim", tmp_path / "r.jsonl")
    rows = load_requests(text)
    assert {row["arrival_time_ns"] for row in rows} == {0}
    assert rows[0]["input_hash_ids"] == [] and "not recorded" in result.notes[0]


class GateRouter:
    """route_ep of GateRouter with policy CUSTOM: sources even, owner e x ep / E, k calls a token.

    It asks for every token with index 0 and is told neither layer nor batch.
    """

    def __init__(self, experts: int, k: int, gate: Callable[..., list[int]]) -> None:
        self.E, self.k, self.gate = experts, k, gate

    def route_ep(self, tokens: int, ep_size: int) -> tuple[list[int], list[int]]:
        local, activated = [0] * ep_size, [set[int]() for _ in range(ep_size)]
        for _ in range(tokens):
            owners = set()
            for expert in self.gate(self, 0, self.E, self.k):
                owner = min(expert * ep_size // self.E, ep_size - 1)
                activated[owner].add(expert)
                owners.add(owner)
            for owner in owners:
                local[owner] += 1
        return local, [len(experts) for experts in activated]


def test_gate_for_llmservingsim(tmp_path: Path, model: MoEModel) -> None:
    trace = served(tmp_path, model)
    text, result = exported(trace, "llmservingsim-gate", tmp_path / "gate.py")
    module: dict[str, Any] = {}
    exec(compile(text, "gate.py", "exec"), module)
    loads = [np.bincount(trace.experts(n).ravel(), minlength=model.experts) for n in trace.layers]
    by_imbalance = sorted(trace.layers, key=lambda n: loads[trace.layers.index(n)].max())
    layer = by_imbalance[len(by_imbalance) // 2]
    assert f"layer {layer} stands for all" in result.notes[0]
    router = GateRouter(model.experts, model.top_k, module["recorded_gate"])
    for _ in range(2):  # the recording starts anew at its end
        local, activated = router.route_ep(trace.tokens, 2)
        owner = trace.experts(layer) * 2 // model.experts
        assert local == [int((owner == rank).any(axis=1).sum()) for rank in range(2)]
        ids = np.unique(trace.experts(layer))
        assert activated == [int((ids * 2 // model.experts == rank).sum()) for rank in range(2)]
    with pytest.raises(ValueError, match=f"recorded with {model.experts} experts"):
        GateRouter(model.experts + 1, model.top_k, module["recorded_gate"]).route_ep(1, 1)


def load_trace_v2(header: str, data: str) -> list[dict[str, Any]]:
    """LoadTraceV2: known header keys only; 27 columns by place, numbers that are not negative."""
    known = {"trace_version", "time_unit", "created_at", "mode", "warm_up_requests"}
    facts = dict(line.split(": ") for line in header.splitlines())
    assert set(facts) <= known and facts["time_unit"] == "microseconds"
    int(facts["trace_version"]), int(facts["warm_up_requests"])
    names, *rows = csv.reader(data.splitlines())
    assert len(names) == 27 and all(len(row) >= 27 for row in rows)
    integers = [0, 5, 7, *range(9, 15), 17, 18, 19, 20, 21, 22, 23]
    for row in rows:
        assert min(int(row[place]) for place in integers) >= 0
        assert row[8] in ("true", "false") and 0 <= float(row[15]) <= 1 and row[24] == "ok"
    return [
        {
            "id": int(row[0]),
            "input": int(row[9]),  # server_input_tokens, 0, leaves it
            "output": int(row[10]),
            "at": int(row[20]) or int(row[19]),  # injectionTime
        }
        for row in rows
    ]


def test_trace_for_inference_sim(tmp_path: Path, model: MoEModel) -> None:
    trace = served(tmp_path, model)
    data, result = exported(trace, "blis-trace", tmp_path / "d.csv")
    header, _ = exported(trace, "blis-header", tmp_path / "h.yaml")
    assert result.rows == 2
    assert load_trace_v2(header, data) == [
        {"id": 0, "input": 3, "output": 3, "at": 0},
        {"id": 1, "input": 5, "output": 5, "at": 1_500_000},
    ]


def drawn_loads(
    rng: np.random.Generator, tokens: int, experts: int, top_k: int, alpha: float
) -> NDArray[np.int64]:
    """[experts] as _generate_power_law_distribution draws them, one rank: a slow, plain reading.

    Inverse CDF on [1, 0.8 x tokens] (or [0.01, 2]), scaled to tokens x top_k, rounded, at most
    `tokens` each; what is over or missing goes one by one to the lowest below the bound, what is
    too much is taken from the highest.
    """
    low, high = (1.0, 0.8 * tokens) if tokens * top_k > experts else (0.01, 2.0)
    power = 1 - alpha
    x = ((high**power - low**power) * rng.random(experts) + low**power) ** (1 / power)
    counts = np.rint(x / x.sum() * tokens * top_k).astype(np.int64)
    counts = np.minimum(counts, tokens)
    while counts.sum() < tokens * top_k:
        counts[np.where(counts < tokens, counts, tokens + 1).argmin()] += 1
    while counts.sum() > tokens * top_k:
        counts[counts.argmax()] -= 1
    return counts


@pytest.mark.parametrize("alpha", [-4.0, 0.0, 0.6, 1.01, 1.2])
@pytest.mark.parametrize("tokens", [128, 512, 4096])
def test_quantiles_are_the_mean_of_what_it_draws(alpha: float, tokens: int) -> None:
    rng = np.random.default_rng(1)
    drawn = [np.sort(drawn_loads(rng, tokens, 64, 4, alpha))[::-1] for _ in range(300)]
    mean = np.mean(drawn, axis=0) / (tokens * 4)
    (expected,) = quantile_shares(np.array([alpha]), tokens, 64, 4)
    assert expected.sum() == pytest.approx(1) and expected.max() <= 0.25 + 1e-12
    assert np.abs(mean - expected).sum() / 2 < 0.04


@pytest.mark.parametrize("alpha", [-4.0, -1.0, 0.3, 1.01, 1.2])
def test_the_fit_finds_the_alpha_that_was_drawn(alpha: float) -> None:
    rng = np.random.default_rng(2)
    best = []
    for tokens in sweep(128, 4):  # each number of tokens against its own law
        expected = quantile_shares(ALPHAS, tokens, 128, 4)
        for _ in range(4):
            shares = drawn_loads(rng, tokens, 128, 4, alpha) / (4 * tokens)
            away = np.abs(expected - np.sort(shares)[::-1]).sum(axis=1)
            best.append(ALPHAS[away.argmin()])
    assert np.median(best) == pytest.approx(alpha, abs=0.06 * (1 + abs(alpha)))


def skewed(model: MoEModel, shares: NDArray[np.float64], path: Path) -> Trace:
    load = np.rint(shares * 1e6).astype(np.int64)
    write_counts(path, model, np.stack([load] * len(model.moe_layers))[None])
    return open_trace(path)


@pytest.mark.parametrize("name", ["balanced", "power_law_1.01", "power_law_1.2"])
def test_aiconfigurator_is_given_the_nearest_table(
    tmp_path: Path, model: MoEModel, name: str
) -> None:
    shares = np.full(model.experts, 1 / model.experts)
    if name != "balanced":
        laws = [
            quantile_shares(np.array([float(name[10:])]), n, model.experts, model.top_k)[0]
            for n in sweep(model.experts, model.top_k)
        ]
        shares = np.mean(laws, axis=0)
    trace = skewed(model, shares, tmp_path / "t")
    document = json.loads(exported(trace, "aiconfigurator", tmp_path / "a.json")[0])
    assert document["workload_distribution"] == name
    (entry,) = document["token_expert_distributions"]  # _moe_token_expert_distributions
    assert entry["name"] == "power_law" and float(entry["power_law_alpha"]) <= 3
    distance = document["fit"]["distance"]
    assert distance[name] == min(v for n, v in distance.items() if n != "fitted")
    if name != "balanced":
        assert entry["power_law_alpha"] == pytest.approx(float(name[10:]), abs=0.06)
    assert list(document["fit"]["alpha_by_layer"]) == [str(n) for n in trace.layers]


def test_distance_is_the_share_that_has_to_move(model: MoEModel) -> None:
    law, ordered = np.array([-8.0]), np.array([0.4, 0.25, 0.25, 0.1])
    (away,) = distances(np.array([[0.4, 0.1, 0.25, 0.25]]), law, 1)
    moved = [np.maximum(ordered - quantile_shares(law, n, 4, 1)[0], 0).sum() for n in sweep(4, 1)]
    by_hand = np.mean(moved)
    assert away[0] == pytest.approx(by_hand)


def test_the_busiest_group_is_the_one_that_it_measures() -> None:
    assert busiest_group(np.array([[0.1, 0.2, 0.3, 0.4]]), None, 2, 1) == pytest.approx(1.4)
    rng = np.random.default_rng(3)
    ours = busiest_group(np.zeros((1, 128)), 1.01, 8, 4)
    drawn = [
        drawn_loads(rng, tokens, 128, 4, 1.01).reshape(8, 16).sum(axis=1).max() * 8 / (tokens * 4)
        for tokens in sweep(128, 4)
        for _ in range(20)
    ]
    assert ours == pytest.approx(np.mean(drawn), rel=0.05)


def test_a_recording_without_tokens_has_no_load(tmp_path: Path, model: MoEModel) -> None:
    write_counts(tmp_path / "c", model, np.zeros((1, 3, model.experts), np.int64))
    with pytest.raises(InputError, match="no load to fit"):
        export_trace(open_trace(tmp_path / "c"), tmp_path / "o", "aiconfigurator")
