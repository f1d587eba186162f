"""read(write(t)) == t, whatever the batches, the nulls and the widths."""

from __future__ import annotations

import json
import stat
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.errors import TraceError
from moeprof.model import MoEModel
from moeprof.trace import (
    Phase,
    Request,
    TelemetrySample,
    TokenRows,
    Trace,
    TraceWriter,
    describe_trace,
    open_trace,
    synthesize_rows,
    validate_trace,
)
from moeprof.trace.columns import concat_rows, layer_major
from tests.conftest import save, small_config


def part(rows: TokenRows, start: int, stop: int) -> TokenRows:
    """Rows start to stop."""
    return TokenRows(
        **{name: None if a is None else a[start:stop] for name, a in vars(rows).items()}
    )


def assert_same(trace: Trace, rows: TokenRows) -> None:
    np.testing.assert_array_equal(trace.step, rows.step)
    np.testing.assert_array_equal(trace.request, rows.request)
    np.testing.assert_array_equal(trace.position, rows.position)
    np.testing.assert_array_equal(trace.phase, rows.phase)
    for ordinal, layer in enumerate(trace.layers):
        mask = np.ones(len(rows), bool) if rows.recorded is None else rows.recorded[:, ordinal]
        np.testing.assert_array_equal(trace.recorded(layer), mask)
        np.testing.assert_array_equal(trace.experts(layer), rows.experts[mask, ordinal])
        if rows.weights is not None:
            np.testing.assert_array_equal(trace.weights(layer), rows.weights[mask, ordinal])


@settings(max_examples=40)
@given(
    tokens=st.integers(1, 400),
    experts=st.sampled_from([5, 16, 256, 257, 300]),
    top_k=st.integers(1, 5),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    nulls=st.booleans(),
    weights=st.booleans(),
    seed=st.integers(0, 99),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: int,
    experts: int,
    top_k: int,
    cuts: list[int],
    nulls: bool,
    weights: bool,
    seed: int,
) -> None:
    model = MoEModel.from_config(small_config(experts=experts, top_k=top_k))
    rng = np.random.default_rng(seed)
    rows, _ = synthesize_rows(model, tokens, seed=seed)
    shape = rows.experts.shape
    rows = TokenRows(
        **{
            **vars(rows),
            "recorded": rng.random(shape[:2]) < 0.7 if nulls else None,
            "weights": rng.random(shape).astype(np.float16) if weights else None,
        }
    )
    path = tmp_path_factory.mktemp("t") / "run.moetrace"
    with TraceWriter(path, model, weights=weights, segment_bytes=4096) as writer:
        bounds = sorted({0, tokens, *(min(c, tokens) for c in cuts)})
        for start, stop in pairwise(bounds):
            writer.write(part(rows, start, stop))
            writer.flush()
    trace = open_trace(path)
    assert trace.problems == ()
    assert_same(trace, rows)
    with TraceWriter(path.with_name("again"), model, weights=weights) as writer:
        for again in trace.rows(batch_rows=1 + seed):
            assert len(again) <= 1 + seed
            writer.write(again)
    assert_same(open_trace(path.with_name("again")), rows)
    assert trace.unrecorded == (0 if rows.recorded is None else (~rows.recorded).sum())
    assert describe_trace(trace).unrecorded == trace.unrecorded


def test_token_ids_and_unknown_phases_come_round(tmp_path: Path, model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 100)
    ids = np.arange(100, dtype=np.int32)
    rows = TokenRows(**{**vars(rows), "phase": None, "token_id": ids})
    (again,) = Trace.in_memory(model, rows).rows()
    np.testing.assert_array_equal(again.token_id, ids)
    trace = Trace.in_memory(model, again)
    assert set(trace.phase.tolist()) == {Phase.UNKNOWN}


def test_a_label_is_an_index_into_the_labels(model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 90, requests=3)
    requests = [Request(0, label="longer"), Request(2, label="b")]
    trace = Trace.in_memory(model, rows, requests)
    assert trace.labels == ("b", "longer")
    assert trace.label_code.dtype == np.int32
    np.testing.assert_array_equal(trace.label_code, np.array([1, -1, 0])[rows.request])
    np.testing.assert_array_equal(trace.label, np.array(["longer", "", "b"])[rows.request])


def test_rows_reach_the_disk_within_half_a_second(tmp_path: Path, model: MoEModel) -> None:
    now = [0.0]
    rows, _ = synthesize_rows(model, 10)
    writer = TraceWriter(tmp_path / "t", model, clock=lambda: now[0])
    writer.write(rows)
    assert open_trace(tmp_path / "t").tokens == 0
    now[0] = 0.5
    writer.tick()
    assert open_trace(tmp_path / "t").tokens == 10
    writer.close()


def test_many_small_flushes_are_compacted(tmp_path: Path, model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 50)
    with TraceWriter(tmp_path / "t", model) as writer:
        for token in range(50):
            writer.write(part(rows, token, token + 1))
            writer.flush()
    trace = open_trace(tmp_path / "t")
    assert [len(batch.experts) for batch in trace.batches(1)] == [50]
    assert_same(trace, rows)


def test_a_request_written_again_replaces_the_first(tmp_path: Path, model: MoEModel) -> None:
    with TraceWriter(tmp_path / "t", model) as writer:
        writer.put_request(Request(0, label="x"))
        writer.flush()
        writer.put_request(Request(0, label="x", output_tokens=7))
    assert open_trace(tmp_path / "t").requests == (Request(0, label="x", output_tokens=7),)


def test_telemetry_is_read_back(tmp_path: Path, model: MoEModel) -> None:
    samples = (
        TelemetrySample(0.5, 0, gpu_utilization=80.0, memory_used_bytes=2**34),
        TelemetrySample(1.5, 1),
    )
    with TraceWriter(tmp_path / "t", model) as writer:
        for sample in samples:
            writer.put_telemetry(sample)
    assert open_trace(tmp_path / "t").telemetry == samples


def test_same_rows_same_bytes(tmp_path: Path, model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 300, seed=3)
    paths = [save(tmp_path / name, model, rows, requests) for name in ("a", "b")]
    files = sorted(p.relative_to(paths[0]) for p in paths[0].rglob("*") if p.is_file())
    assert files
    assert all((paths[0] / f).read_bytes() == (paths[1] / f).read_bytes() for f in files)


def test_only_the_owner_may_read(tmp_path: Path, model: MoEModel) -> None:
    path = save(tmp_path / "t", model, *synthesize_rows(model, 10))
    for file in path.rglob("*"):
        mode = stat.S_IMODE(file.stat().st_mode)
        assert mode == (0o700 if file.is_dir() else 0o600), file


def test_reading_is_zero_copy(tmp_path: Path, model: MoEModel) -> None:
    trace = open_trace(save(tmp_path / "t", model, *synthesize_rows(model, 100)))
    assert not trace.experts(1).flags.owndata
    assert not trace.step.flags.owndata


def test_an_unknown_phase_is_null_not_prefill(tmp_path: Path, model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 10)
    rows = TokenRows(**{**vars(rows), "phase": None})
    trace = open_trace(save(tmp_path / "t", model, rows, requests))
    assert set(trace.phase.tolist()) == {Phase.UNKNOWN}


def test_recorded_and_dropped_are_both_counted(tmp_path: Path, model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 10)
    with TraceWriter(tmp_path / "t", model) as writer:
        writer.write(rows)
        writer.drop(5, "writer behind")
    trace = open_trace(tmp_path / "t")
    assert (trace.tokens, trace.dropped) == (10, {"writer behind": 5})


def test_compressed_segments_read_the_same(tmp_path: Path, model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 2000)
    with TraceWriter(tmp_path / "t", model, compression="zstd") as writer:
        writer.write(rows)
    trace = open_trace(tmp_path / "t")
    assert trace.problems == ()
    assert_same(trace, rows)


def test_an_existing_trace_is_kept_unless_forced(tmp_path: Path, model: MoEModel) -> None:
    path = save(tmp_path / "t", model, *synthesize_rows(model, 10))
    with pytest.raises(TraceError, match="will not be overwritten without --force"):
        TraceWriter(path, model)
    TraceWriter(path, model, force=True).close()
    assert open_trace(path).tokens == 0
    (tmp_path / "precious").mkdir()
    with pytest.raises(TraceError, match="replaces only traces"):
        TraceWriter(tmp_path / "precious", model, force=True)


def test_rows_of_another_shape_are_refused(tmp_path: Path, model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 10)
    with TraceWriter(tmp_path / "t", model) as writer:
        with pytest.raises(TraceError, match="this trace takes"):
            writer.write(TokenRows(**{**vars(rows), "experts": rows.experts[:, :, :2]}))
        with pytest.raises(TraceError, match="must not have weights"):
            weights = np.zeros(rows.experts.shape, np.float16)
            writer.write(TokenRows(**{**vars(rows), "weights": weights}))
    with pytest.raises(TraceError, match="step has shape"):
        TokenRows(**{**vars(rows), "step": rows.step[:3]})


def test_what_was_not_recorded_is_refused_in_one_sentence(trace: Trace) -> None:
    with pytest.raises(TraceError, match="layer 0 was not recorded; recorded are 1-3"):
        trace.experts(0)
    with pytest.raises(TraceError, match="weights=True"):
        trace.weights(1)
    with pytest.raises(TraceError, match="token_ids=True"):
        _ = trace.token_id


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6, 8, 10])
def test_turning_keeps_every_id(k: int) -> None:
    values = np.random.default_rng(k).integers(0, 999, (1030, 5, k)).astype(np.uint16)
    np.testing.assert_array_equal(layer_major(values), values.swapaxes(0, 1))


def test_parts_with_and_without_nulls_join(model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 4)
    nulls = np.zeros((4, 3), bool)
    joined = concat_rows([rows, TokenRows(**{**vars(rows), "recorded": nulls})])
    assert joined.recorded is not None
    assert joined.recorded[:4].all()
    assert not joined.recorded[4:].any()


def test_the_manifest_is_plain_json(tmp_path: Path, model: MoEModel) -> None:
    path = save(tmp_path / "t", model, *synthesize_rows(model, 10))
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["schema"] == "moeprof.trace/1"
    assert manifest["layers"] == [1, 2, 3]
    assert manifest["files"][1]["rows"] == 10


def test_a_trace_by_another_arrow_writer_is_read(tmp_path: Path, model: MoEModel) -> None:
    """Nulls as pyarrow itself writes them: the items of a null list are null too."""
    path = save(tmp_path / "t", model, *synthesize_rows(model, 6, requests=1))
    segment = path / "segments" / "000000.arrows"
    batch = pa.ipc.open_stream(segment.read_bytes()).read_next_batch()
    ids = [[1, 2, 3], None, [4, 5, 6], [7, 8, 9], None, [1, 2, 3]]
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns["experts.2"] = pa.array(ids, pa.list_(pa.uint8(), 3))
    table = pa.RecordBatch.from_pydict(columns)
    segment.unlink()
    with pa.OSFile(str(segment), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_batch(table)
    trace = open_trace(path)
    assert trace.experts(2).tolist() == [row for row in ids if row]
    assert trace.recorded(2).tolist() == [row is not None for row in ids]
    assert trace.experts(1).shape == (6, 3)


def test_a_sequence_that_is_run_again_is_no_gap(tmp_path: Path, model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 6, requests=1)
    rows.position[:] = [0, 1, 2, 0, 1, 2]
    assert validate_trace(save(tmp_path / "t", model, rows, requests)).problems == []


def test_a_phase_that_is_none_counts_as_unknown(tmp_path: Path, model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 6, requests=1)
    assert rows.phase is not None
    rows.phase[4] = 7
    path = save(tmp_path / "t", model, rows, requests)
    assert open_trace(path).phase[4] == Phase.UNKNOWN
    assert validate_trace(path).problems == ["row 4: phase 7 is not 0, 1 or null"]


def test_nulls_where_a_value_must_be_are_named(tmp_path: Path, model: MoEModel) -> None:
    path = save(tmp_path / "t", model, *synthesize_rows(model, 3, requests=1))
    segment = path / "segments" / "000000.arrows"
    batch = pa.ipc.open_stream(segment.read_bytes()).read_next_batch()
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns["step"] = pa.array([0, None, 1], pa.int64())
    table = pa.RecordBatch.from_pydict(columns)
    segment.unlink()
    with pa.OSFile(str(segment), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_batch(table)
    trace = open_trace(path)
    assert trace.tokens == 0
    assert "segments/000000.arrows: holds nulls where a value must be" in trace.problems[0]
