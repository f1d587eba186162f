"""Real recordings of seven programs come in as their authors describe them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from moeprof.trace.formats import import_trace
from tests.trace.formats.files import ids_of, imported, shared


def test_deepseek_decode_csvs_are_requests_of_one_trace(tmp_path: Path) -> None:
    files = sorted(shared("traces", "deepseek-v4-flash").glob("*.csv.gz"))
    trace, result = imported(files, tmp_path / "t", experts=256)
    assert result.format == "decode-csv"
    lengths = [299, 49, 790, 299, 206, 37, 235, 117]
    assert sorted(np.bincount(trace.request)) != [] and trace.tokens == 1862
    assert sorted(np.bincount(trace.request)) == sorted([790, 299, 235, 206, 129, 117, 49, 37])
    assert len(lengths) == len(trace.requests)
    assert trace.layers == tuple(range(3, 43)) and trace.top_k == 6
    assert (trace.phase == 1).all() and trace.manifest.rank_ordered is True
    with gzip.open(files[0], "rt") as file:
        rows = [line.split(",") for line in file.read().splitlines()[1:]]
    first = [row for row in rows if row[1] == "7"]
    count = len(first)
    assert trace.experts(7)[:count].tolist() == [[int(e) for e in row[3:9]] for row in first]
    assert trace.position[:count].tolist() == [int(row[0]) for row in first]
    wanted = np.array([[float(w) for w in row[9:]] for row in first])
    assert np.allclose(trace.weights(7)[:count], wanted, rtol=1e-3)


def test_gpt_oss_cells_keep_labels_and_lose_padding(tmp_path: Path) -> None:
    file = shared("traces", "gpt-oss-20b", "sample_traces.npz")
    trace, result = imported(file, tmp_path / "t")
    assert (trace.tokens, len(trace.requests), len(trace.layers), trace.top_k) == (16460, 55, 24, 4)
    assert (result.experts, result.skipped) == (32, {})
    with np.load(file) as arrays:
        assert trace.requests[7].label == arrays["labels"][7]
        assert (
            trace.experts(5)[trace.request == 7] == arrays["experts"][7, : arrays["n_tokens"][7], 5]
        ).all()
    assert (trace.position == -1).all()  # prompt lengths are not in the file


def test_olmoe_lines_have_lost_their_rank(tmp_path: Path) -> None:
    file = shared("traces", "olmoe-1b-7b", "trace_olmoe_299.jsonl")
    trace, result = imported(file, tmp_path / "t", token_ids=True)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert (ids_of(trace) == np.array([line["layers"] for line in lines])).all()
    assert trace.token_id.tolist() == [line["tok"] for line in lines]
    assert trace.manifest.rank_ordered is False
    assert any("rank is lost" in note for note in result.notes)


def test_granite_prompts_have_both_phases(tmp_path: Path) -> None:
    file = shared("traces", "granite-3.0-1b", "moe_expert_trace.json")
    trace, _ = imported(file, tmp_path / "t")
    prompts = json.loads(file.read_text())["prompts"]
    assert {r.label: r.prompt_tokens for r in trace.requests} == {
        name: prompt["prompt_len"] for name, prompt in prompts.items()
    }
    wanted = [row for p in prompts.values() for row in [*p["prefill"], *p["decode"]]]
    assert (ids_of(trace) == np.array(wanted)).all()
    assert (trace.phase == 0).sum() == 39 + 44 + 29 and (trace.phase == 1).sum() == 3 * 64


def test_toy_events_are_a_token_each(tmp_path: Path) -> None:
    trace, _ = imported(shared("traces", "event-atomic-toy", "events.csv"), tmp_path / "t")
    assert ids_of(trace)[:, 0].tolist() == [[0, 1], [0, 2], [0, 1], [0, 3], [0, 1]]
    assert trace.step.tolist() == [0, 1, 2, 3, 4]


def test_vllm_log_loses_its_warm_up_and_tells_its_steps(tmp_path: Path) -> None:
    file = shared("traces", "messy", "vllm-route-log-with-warmup.jsonl.gz")
    trace, result = imported(file, tmp_path / "t", experts=60)
    assert result.skipped == {"warm-up": 16384}
    assert trace.tokens == 18818 - 16384
    sizes = np.bincount(trace.step)
    assert sizes[sizes > 0][:4].tolist() == [65, 25, 25, 25]
    assert (trace.request == -1).all() and (trace.phase == -1).all()
    kept = import_trace(file, tmp_path / "all", keep_warmup=True)
    assert kept.tokens == 18818 and kept.skipped == {}


def test_gate_matrices_join_by_row_and_show_that_they_are_interleaved(tmp_path: Path) -> None:
    files = sorted(shared("traces", "messy").glob("encoder_layer*.csv.gz"))
    trace, result = imported(files, tmp_path / "t")
    assert (trace.tokens, trace.layers, trace.top_k, result.experts) == (2048, (2, 3), 6, 64)
    assert any("8 rows before" in note for note in result.notes)
    assert (np.diff(trace.weights(2).astype(np.float32), axis=1) <= 0).all()


def test_vllm_responses_of_a_real_server(tmp_path: Path) -> None:
    for name, prompt, rows in (("chat", 19, 24), ("completions", 66, 71)):
        file = shared("fixtures", f"fixture_vllm_{name}.json")
        trace, result = imported(file, tmp_path / name)
        assert (trace.tokens, trace.layers, trace.top_k) == (rows, (1, 2, 3), 2)
        assert trace.position.tolist() == list(range(rows))
        assert (trace.phase == (trace.position >= prompt)).all()
        assert trace.requests[0].output_tokens == 6
        assert list(result.skipped.values()) == [rows]  # the dense layer, which is not expert 0
