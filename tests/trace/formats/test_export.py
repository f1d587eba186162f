"""What is exported comes back as it was; what other programs read is as they read it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from moeprof.analysis import analyze_load
from moeprof.errors import InputError, TraceError
from moeprof.model import MoEModel
from moeprof.trace import Trace, open_trace, synthesize_rows, write_counts
from moeprof.trace.formats import EXPORTS, export_trace
from tests.conftest import save
from tests.trace.formats.files import ids_of, imported
from tests.trace.test_limits import with_extras

FROM_COUNTS = ("load", "logical-count", "aiconfigurator", "blis-header")  # need no order


@pytest.fixture
def written(tmp_path: Path, model: MoEModel) -> Trace:
    rows, requests = synthesize_rows(model, 300, requests=4)
    recorded = np.ones((300, 3), bool)
    recorded[7, 1] = False
    rows = type(rows)(**{**vars(rows), "recorded": recorded})
    return open_trace(save(tmp_path / "run.moetrace", model, rows, requests))


@pytest.mark.parametrize("format", ["csv", "jsonl", "npz", "parquet"])
def test_plain_layouts_come_back(
    tmp_path: Path, written: Trace, model: MoEModel, format: str
) -> None:
    file = tmp_path / f"out.{format}"
    result = export_trace(written, file, format)
    assert result.rows == (300 * 3 - 1 if format == "csv" else 300)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again, _ = imported(file, tmp_path / "again", model=model)
    for name in ("step", "request", "position", "phase"):
        assert (getattr(again, name) == getattr(written, name)).all()
    for layer in written.layers:
        assert (again.recorded(layer) == written.recorded(layer)).all()
        assert (again.experts(layer) == written.experts(layer)).all()
    if format in ("jsonl", "npz"):
        assert again.labels == written.labels
        assert [r.prompt_tokens for r in again.requests] == [
            r.prompt_tokens for r in written.requests
        ]


@pytest.mark.parametrize("format", ["csv", "jsonl", "npz", "parquet"])
def test_weights_and_token_ids_come_back(tmp_path: Path, model: MoEModel, format: str) -> None:
    rows, _ = synthesize_rows(model, 50)
    rng = np.random.default_rng(0)
    full = type(rows)(**{
        **vars(rows),
        "weights": rng.random(rows.experts.shape).astype(np.float16),
        "token_id": rng.integers(0, 99, 50).astype(np.int32),
    })  # fmt: skip
    trace = Trace.in_memory(model, full)
    file = tmp_path / f"out.{format}"
    export_trace(trace, file, format)
    again, _ = imported(file, tmp_path / "again", model=model, token_ids=True)
    assert (again.token_id == trace.token_id).all()
    for layer in trace.layers:
        assert (again.weights(layer) == trace.weights(layer)).all()


def test_parquet_has_the_columns_of_the_trace(tmp_path: Path, written: Trace) -> None:
    assert export_trace(written, tmp_path / "o.parquet", "parquet").rows == 300
    table = parquet.read_table(tmp_path / "o.parquet")
    assert table.column("step").to_pylist() == written.step.tolist()
    assert table.column("experts.2").null_count == 1
    assert table.column("experts.1").to_pylist() == written.experts(1).tolist()


def test_parquet_with_a_layer_that_was_never_recorded(tmp_path: Path, model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 40)
    recorded = np.ones((40, 3), bool)
    recorded[:, 1] = False
    trace = Trace.in_memory(model, type(rows)(**{**vars(rows), "recorded": recorded}))
    export_trace(trace, tmp_path / "o.parquet", "parquet")
    again, _ = imported(tmp_path / "o.parquet", tmp_path / "t", model=model)
    assert again.layers == (1, 3) and (again.experts(3) == trace.experts(3)).all()


def test_parquet_holds_every_optional_column(tmp_path: Path, model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 40)
    trace = Trace.in_memory(model, with_extras(rows))
    export_trace(trace, tmp_path / "o.parquet", "parquet")
    assert set(parquet.read_schema(tmp_path / "o.parquet").names) == set(
        trace.manifest.segment_schema.names
    )


def test_oracle_general_is_the_order_of_events(tmp_path: Path, written: Trace) -> None:
    result = export_trace(written, tmp_path / "o.bin", "oracle-general")
    data = np.fromfile(
        tmp_path / "o.bin", [("t", "<u4"), ("obj", "<u8"), ("size", "<u4"), ("next", "<i8")]
    )
    wanted = []
    for step in np.unique(written.step):
        for ordinal, layer in enumerate(written.layers):
            here = (written.step == step)[written.recorded(layer)]
            ids = np.unique(written.experts(layer)[here])
            wanted += [(int(step - written.step[0]), ordinal * 16 + int(e)) for e in ids]
    assert list(zip(data["t"].tolist(), data["obj"].tolist(), strict=True)) == wanted
    assert result.rows == len(data) == len(wanted)
    objects = data["obj"].tolist()
    for place in range(0, len(objects), 17):
        later = [i for i in range(place + 1, len(objects)) if objects[i] == objects[place]]
        assert data["next"][place] == (later[0] if later else -1)


def test_replay_arrays_are_what_vllm_sends(tmp_path: Path, model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 120, requests=3)
    trace = Trace.in_memory(model, rows, requests)
    assert export_trace(trace, tmp_path / "r3.jsonl", "r3").rows == 3
    again, _ = imported(tmp_path / "r3.jsonl", tmp_path / "t", model=model)
    assert (ids_of(again) == ids_of(trace)).all()
    assert (again.phase == trace.phase).all() and (again.request == trace.request).all()
    cut = Trace.in_memory(model, type(rows)(**{**vars(rows), "position": rows.position + 1}))
    result = export_trace(cut, tmp_path / "none.jsonl", "r3")
    assert result.skipped == {"request without one row for every position": 3}


def test_load_is_that_of_the_analysis(tmp_path: Path, written: Trace, model: MoEModel) -> None:
    export_trace(written, tmp_path / "l.npy", "load")
    load = np.load(tmp_path / "l.npy")
    assert load.shape == (3, 16) and load.sum() == (300 * 3 - 1) * 3
    shown = analyze_load(written).per_layer
    assert load.max(axis=1) / load.mean(axis=1) == pytest.approx([r.imbalance for r in shown])
    export_trace(written, tmp_path / "l.json", "logical-count")
    counts = np.array(json.loads((tmp_path / "l.json").read_text())["logical_count"])
    assert counts.shape == (4, 16) and (counts[1:] == load).all() and not counts[0].any()
    write_counts(tmp_path / "c", model, load[None])
    export_trace(open_trace(tmp_path / "c"), tmp_path / "c.npy", "load")
    assert (np.load(tmp_path / "c.npy") == load).all()


@pytest.mark.parametrize("format", [f for f in EXPORTS if f not in FROM_COUNTS])
def test_counts_have_no_tokens_to_export(tmp_path: Path, model: MoEModel, format: str) -> None:
    write_counts(tmp_path / "c", model, np.ones((1, 3, 16), np.int64))
    with pytest.raises(TraceError, match="counts only"):
        export_trace(open_trace(tmp_path / "c"), tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_files_are_not_overwritten(tmp_path: Path, written: Trace) -> None:
    (tmp_path / "o.csv").write_text("mine")
    with pytest.raises(InputError, match="--force"):
        export_trace(written, tmp_path / "o.csv", "csv")
    with pytest.raises(InputError, match="is not one of"):
        export_trace(written, tmp_path / "p", "nonsense")
    export_trace(written, tmp_path / "o.csv", "csv", force=True)
    assert (tmp_path / "o.csv").read_text().startswith("step,request,position,phase,layer,e0")
    assert list(tmp_path.glob(".*")) == []
