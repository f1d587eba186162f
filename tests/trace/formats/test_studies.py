"""What training frameworks, studies and other simulators write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from moeprof.errors import InputError
from moeprof.trace.formats import import_trace
from tests.trace.formats.files import ids_of, imported, routing, write_lines


def test_lists_of_steps_with_dense_layers(tmp_path: Path) -> None:
    ids = routing()
    steps = [
        {"0": None, **{str(n + 1): ids[part, n].tolist() for n in range(3)}}
        for part in [slice(0, 5), *[slice(t, t + 1) for t in range(5, 12)]]
    ]
    (tmp_path / "q.json").write_text(json.dumps(steps))
    trace, result = imported(tmp_path / "q.json", tmp_path / "t")
    assert result.format == "steps-json" and trace.layers == (1, 2, 3)
    assert (ids_of(trace) == ids).all() and trace.requests[0].prompt_tokens == 5
    assert trace.step.tolist() == [0] * 5 + list(range(1, 8))
    assert (trace.phase == (trace.step > 0)).all()


@pytest.mark.parametrize("version", [1, 2])
def test_moe_cache_lab(tmp_path: Path, version: int) -> None:
    ids = routing()
    meta = {"format": "moe-cache-lab.routing-jsonl", "format_version": version, "model_id": "m"}
    stage = {"routing_stage": "decoder", "num_experts": 16, "assigned_experts_per_token": 2}
    meta |= {"num_experts": 16} if version == 1 else {"routing_stages": [stage]}
    prefix = "" if version == 1 else "decoder_"
    lines = [
        {
            "record_type": "routing_selection", "layer": n + 1, "token_position": t,
            "phase": prefix + ("prompt" if t < 5 else "generated"),
            "selected_experts": ids[t, n].tolist(), "selected_probabilities": [0.5, 0.25],
        }
        for t in range(12)
        for n in range(3)
    ]  # fmt: skip
    file = write_lines(tmp_path / "t.jsonl", [{**meta, "record_type": "metadata"}, *lines])
    trace, _ = imported(file, tmp_path / "t")
    assert (ids_of(trace) == ids).all() and trace.model.name == "m"
    assert (trace.phase == (np.arange(12) >= 5)).all() and trace.weights(1)[0].tolist() == [
        0.5,
        0.25,
    ]

    lines[4] |= {"selected_experts": [], "selected_probabilities": []}
    file = write_lines(tmp_path / "u.jsonl", [meta, *lines])
    trace, result = imported(file, tmp_path / "u")
    assert result.skipped == {"token without an assigned expert": 1} and trace.unrecorded == 1


def test_megatron_router_traces(tmp_path: Path) -> None:
    ids = routing()
    lines = [
        {
            "step": s, "stage": "pre_dispatch", "block": "decoder", "layer": n, "rank": 0,
            "num_tokens": 6, "topk": 2, "top_indices": ids[6 * s : 6 * s + 6, n].tolist(),
        }
        for s in range(2)
        for n in range(3)
    ]  # fmt: skip
    lines.append({**lines[-1], "block": "mtp", "layer": 3})
    file = write_lines(tmp_path / "router_trace_rank0.jsonl", lines)
    trace, result = imported(file, tmp_path / "t")
    assert result.format == "megatron" and (ids_of(trace) == ids).all()
    assert trace.step.tolist() == [0] * 6 + [1] * 6
    assert result.skipped == {"line of a prediction layer (mtp)": 1}


def test_flame_parquet_is_a_file_a_layer(tmp_path: Path) -> None:
    ids = routing()
    scores = np.sort(np.random.default_rng(0).random((12, 3, 2)).astype(np.float16), axis=2)
    folder = tmp_path / "iter_0540"
    folder.mkdir()
    for n in range(3):
        table = {
            "scores": pa.array(list(scores[:, n, ::-1]), pa.list_(pa.float16())),
            "indices": pa.array(ids[:, n].tolist(), pa.list_(pa.int16())),
        }
        parquet.write_table(pa.table(table), folder / f"layer_{n + 2:02d}.parquet")
    trace, result = imported(folder, tmp_path / "t")
    assert result.format == "flame-moe" and trace.layers == (2, 3, 4)
    assert (ids_of(trace) == ids).all() and (trace.weights(3) == scores[:, 1, ::-1]).all()
    files = sorted(folder.glob("*.parquet"))
    assert imported(files[:2], tmp_path / "u")[0].layers == (2, 3)
    with pytest.raises(InputError, match="one file"):
        import_trace([files[0], files[0]], tmp_path / "v")


def test_mosl_folder(tmp_path: Path) -> None:
    ids = routing().astype(np.int16)
    folder = tmp_path / "m"
    folder.mkdir()
    for n in range(3):
        np.save(folder / f"layer{n:03d}.npy", ids[:, n])
    np.save(folder / "seq_lens.npy", np.array([5, 7]))
    (folder / "meta.json").write_text('{"repo": "a/b", "n_seqs": 2}')
    (folder / "domains.json").write_text('["code", "text"]')
    trace, _ = imported(folder, tmp_path / "t")
    assert (ids_of(trace) == ids).all() and trace.labels == ("code", "text")
    assert trace.position.tolist() == [*range(5), *range(7)] and trace.model.name == "a/b"
    np.save(folder / "seq_lens.npy", np.array([5, 8]))
    with pytest.raises(InputError, match="13 tokens"):
        import_trace(folder, tmp_path / "u")
