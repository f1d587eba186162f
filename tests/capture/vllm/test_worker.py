"""What a worker records of random traffic is what its routers chose, whatever was scheduled."""

from __future__ import annotations

import base64
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.capture.vllm.ranks import Rank
from moeprof.capture.vllm.worker import WorkerRecorder
from moeprof.trace import Phase, open_trace
from tests.capture.vllm.fakes import EXPERTS, LAYERS, Asked, FakeEngine, FakeRouter, make_subject


def start(path: Path, engine: FakeEngine, **options: Any) -> WorkerRecorder:
    recorder = WorkerRecorder()
    recorder.provide(make_subject(), engine.buffer)
    status = recorder.control("start", {"output": str(path), "request_names": "plain"} | options)
    assert status["error"] is None
    assert status["recording"]
    return recorder


def step(recorder: WorkerRecorder, engine: FakeEngine, work: dict[str, int], **more: Any) -> None:
    scheduled = engine.scheduled(work, more.get("new", []), more.get("finished", []))
    recorder.before(scheduled, False)
    if work:
        engine.execute_model(scheduled)
    recorder.after(engine.runner, scheduled)


def rows_of(path: Path) -> pa.Table:
    files = sorted((path / "segments").glob("*.arrows"))
    return pa.concat_tables(pa.ipc.open_stream(file).read_all() for file in files)


def requests_of(path: Path) -> dict[str, dict[str, Any]]:
    rows = pa.ipc.open_stream(path / "requests.arrows").read_all().to_pylist()
    return {row["name"]: row for row in rows}


@settings(max_examples=12)
@given(data=st.data(), second=st.booleans(), padding=st.integers(0, 5))
def test_every_row_is_what_was_routed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, second: bool, padding: int
) -> None:
    """Chunked prompts, prefix-cache hits, several requests a step, some preempted and resumed."""
    path = tmp_path_factory.mktemp("t") / "t.moetrace"
    engine = FakeEngine(second=second, padding=padding, seed=data.draw(st.integers(0, 99)))
    recorder = start(path, engine, token_ids=True)
    running: dict[str, Asked] = {}
    made = 0
    for _ in range(data.draw(st.integers(1, 8))):
        finished = [n for n in running if data.draw(st.integers(0, 5)) == 0]
        for name in finished:
            del running[name]
        new = []
        if data.draw(st.booleans()) or not running:
            prompt = data.draw(st.integers(1, 30))
            cached = data.draw(st.integers(0, prompt - 1))
            new = [Asked(f"r{made}", prompt, cached)]
            made += 1
        running |= {asked.name: asked for asked in new}
        for asked in running.values():
            if asked.computed and data.draw(st.integers(0, 6)) == 0:
                asked.computed = 0  # preempted: it is computed again from its start
        work = {n: data.draw(st.integers(1, 9)) for n in running}
        step(recorder, engine, work, new=new, finished=finished)
    recorder.close()
    table, requests = rows_of(path), requests_of(path)
    names = {row["index"]: name for name, row in requests.items()}
    assert len(table) == len(engine.truth)
    experts = np.stack([np.array(table[f"experts.{n}"].to_pylist()) for n in LAYERS], axis=1)
    found = zip(*(table[c].to_pylist() for c in ("step", "request", "position")), strict=True)
    for row, ((number, name, position, chosen), (a, b, c)) in enumerate(
        zip(engine.truth, found, strict=True)
    ):
        assert (number, name, position) == (a, names[b], c)
        np.testing.assert_array_equal(experts[row], chosen)
        decode = position >= engine.requests[name].prompt
        assert table["phase"][row].as_py() == (Phase.DECODE if decode else Phase.PREFILL)
        assert table["token_id"][row].as_py() == position * 7 % 300
    for name, row in requests.items():
        last = max(p for _, n, p, _ in engine.truth if n == name)
        assert row["prompt_tokens"] == engine.requests[name].prompt
        assert row["output_tokens"] == max(0, last + 1 - row["prompt_tokens"] + 1)


def test_dummy_forwards_count_and_are_no_traffic(tmp_path: Path) -> None:
    engine = FakeEngine()
    recorder = start(tmp_path / "t", engine)
    recorder.before(None, True)
    step(recorder, engine, {"a": 4}, new=[Asked("a", 4)])
    dummy = engine.scheduled({"x": 3}, [], [])
    recorder.before(dummy, True)
    engine.execute_model(dummy, dummy_run=True)
    step(recorder, engine, {"a": 1})
    step(recorder, engine, {})  # nothing to run: no forward either
    recorder.close()
    assert rows_of(tmp_path / "t")["step"].to_pylist() == [1, 1, 1, 1, 3]
    assert recorder.control("status")["tokens"] == 5


@pytest.mark.parametrize("order", ["before", "after", "past the setter"])
def test_what_vllm_binds_is_kept_whichever_comes_first(tmp_path: Path, order: str) -> None:
    engine = FakeEngine()
    router = FakeRouter()
    seen: list[int] = []
    own = partial(_note, seen)
    if order == "before":
        router.set_capture_fn(own)
    engine.routers[0] = router
    take_over = engine.tap()
    if order == "after":
        router.set_capture_fn(own)
    elif order == "past the setter":
        router.capture_fn = own
        take_over()
    take_over()
    recorder = start(tmp_path / "t", engine)
    step(recorder, engine, {"a": 4}, new=[Asked("a", 4)])
    recorder.close()
    assert seen == [4]
    assert open_trace(tmp_path / "t").tokens == 4


def _note(seen: list[int], ids: torch.Tensor) -> None:
    seen.append(len(ids))


@pytest.mark.parametrize("wrong", ["columns", "missing", "no expert"])
def test_wrong_shapes_are_counted_and_never_recorded(tmp_path: Path, wrong: str) -> None:
    engine = FakeEngine()
    tap = engine.routers[1].capture_fn
    changed = {
        "columns": lambda ids: tap(torch.cat([ids, ids], dim=1)),
        "missing": lambda ids: None,
        "no expert": lambda ids: tap(ids + 500),
    }
    engine.routers[1].capture_fn = changed[wrong]
    recorder = start(tmp_path / "t", engine)
    step(recorder, engine, {"a": 4}, new=[Asked("a", 4)])
    recorder.close()
    status = recorder.control("status")
    if wrong == "no expert":
        assert status["tokens"] == 0
        assert status["dropped"] == {"recording failed": 4}
        assert "writing the trace failed" in status["error"]
    else:
        table = rows_of(tmp_path / "t")
        assert table["experts.2"].null_count == 4
        assert table["experts.1"].null_count == 0


def test_an_engine_that_changed_ends_the_recording_alone(tmp_path: Path) -> None:
    engine = FakeEngine()
    recorder = start(tmp_path / "t", engine)
    step(recorder, engine, {"a": 4}, new=[Asked("a", 4)])
    scheduled = engine.scheduled({"a": 1}, [], [])
    recorder.before(scheduled, False)
    recorder.after(object(), scheduled)  # no such runner: must not raise
    step(recorder, engine, {"a": 1})
    recorder.close()
    status = recorder.control("status")
    assert "recording a step failed: AttributeError" in status["error"]
    assert not status["recording"]
    # What waited for the writer may be lost with it; all is counted.
    assert status["tokens"] + status["dropped"]["recording failed"] == 6


def test_control_answers_errors_and_never_raises(tmp_path: Path) -> None:
    recorder = WorkerRecorder()
    assert "not loaded" in recorder.control("start", {"output": "t"})["error"]
    engine = FakeEngine()
    recorder.provide(make_subject(), engine.buffer)
    assert "'restart'" in recorder.control("restart")["error"]
    assert "output" in recorder.control("start", {})["error"]
    assert recorder.control("recent")["rows"] is None
    (tmp_path / "taken").mkdir()
    assert "exists" in recorder.control("start", {"output": str(tmp_path / "taken")})["error"]
    assert recorder.control("start", {"output": str(tmp_path / "t")})["error"] is None
    assert "already" in recorder.control("start", {"output": str(tmp_path / "u")})["error"]
    assert "whole numbers" in recorder.control("recent", {"after_step": "1"})["error"]
    recorder.control("stop")
    recorder.close()
    status = recorder.control("status")
    assert not status["recording"]
    assert not status["closing"]
    assert recorder.control("start", {"output": str(tmp_path / "u")})["recording"]
    recorder.close()


def test_a_recording_that_begins_late_knows_its_requests(tmp_path: Path) -> None:
    engine = FakeEngine()
    recorder = WorkerRecorder()
    recorder.provide(make_subject(), engine.buffer)
    step(recorder, engine, {"old": 5}, new=[Asked("old", 5)])
    recorder.control("start", {"output": str(tmp_path / "t"), "request_names": "plain"})
    step(recorder, engine, {"old": 1, "new-0123abcd": 2}, new=[Asked("new-0123abcd", 2)])
    step(recorder, engine, {"new-0123abcd": 1}, finished=["old"])
    recorder.close()
    requests = requests_of(tmp_path / "t")
    assert set(requests) == {"old", "new"}  # vLLM's random digits are not the client's
    assert requests["old"]["arrival_s"] is None
    assert requests["new"]["arrival_s"] >= 0
    assert requests["old"]["output_tokens"] == 2
    assert rows_of(tmp_path / "t")["step"].to_pylist() == [1, 1, 1, 2]


def test_recent_rows_are_whole_steps_without_token_ids(tmp_path: Path) -> None:
    engine = FakeEngine()
    recorder = start(tmp_path / "t", engine, token_ids=True)
    for n in range(20):
        step(recorder, engine, {"a": 3}, new=[Asked("a", 9)] if n == 0 else [])
    recorder.close()
    recorded = rows_of(tmp_path / "t")

    def recent(**options: int) -> pa.Table:
        rows = recorder.control("recent", options)["rows"]
        return pa.ipc.open_stream(base64.b64decode(rows)).read_all()

    assert recent().equals(recorded.drop_columns("token_id"))
    assert recent(after_step=14)["step"].to_pylist() == sorted([15, 16, 17, 18, 19] * 3)
    few = recent(max_bytes=400)["step"].to_pylist()
    assert 0 < len(few) < 20
    assert len(few) % 3 == 0
    assert few[-1] == 19
    assert len(recent(after_step=19)) == 0
    assert len(recent(max_bytes=0)) == 0


def test_the_writer_behind_drops_whole_steps_with_a_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine()
    recorder = start(tmp_path / "t", engine)
    recording = recorder._recording
    assert recording is not None
    offer = recording.pipeline.drain.offer
    monkeypatch.setattr(
        recording.pipeline.drain, "offer", lambda *a, **k: not (len(a) > 1 and a[1])
    )
    step(recorder, engine, {"a": 4}, new=[Asked("a", 4)])
    monkeypatch.setattr(recording.pipeline.drain, "offer", offer)
    step(recorder, engine, {"a": 1})
    recorder.close()
    status = recorder.control("status")
    assert status["dropped"] == {"the writer fell behind": 4}
    assert status["tokens"] == 1


def test_with_speculation_what_was_generated_is_not_claimed(tmp_path: Path) -> None:
    engine = FakeEngine()
    recorder = WorkerRecorder()
    recorder.provide(make_subject(speculative=True), engine.buffer)
    recorder.control("start", {"output": str(tmp_path / "t"), "request_names": "plain"})
    step(recorder, engine, {"a": 4}, new=[Asked("a", 4)])
    step(recorder, engine, {"a": 3})
    engine.requests["a"].computed -= 2  # two drafts were rejected
    step(recorder, engine, {"a": 3})
    recorder.close()
    assert rows_of(tmp_path / "t")["position"].to_pylist() == [0, 1, 2, 3, 4, 5, 6, 5, 6, 7]
    assert requests_of(tmp_path / "t")["a"]["output_tokens"] is None


def test_a_rank_that_others_write_for_keeps_silent(tmp_path: Path) -> None:
    recorder = WorkerRecorder()
    recorder.provide(make_subject(Rank(tp=1, tp_size=2)), None)
    status = recorder.control("start", {"output": str(tmp_path / "t")})
    assert status["error"] is None
    assert not status["writes"]
    assert not status["recording"]
    assert not (tmp_path / "t").exists()


def test_counts_alone_where_that_is_asked_for(tmp_path: Path) -> None:
    engine = FakeEngine()
    recorder = start(tmp_path / "t", engine, aggregate_steps=4)
    for n in range(10):
        step(recorder, engine, {"a": 3}, new=[Asked("a", 9)] if n == 0 else [])
    recorder.close()
    status = recorder.control("status")
    assert status["error"] is None
    assert status["tokens"] == 30
    trace = open_trace(tmp_path / "t")
    assert trace.counts_only
    chosen = np.stack([experts for *_, experts in engine.truth])  # [T, L, k]
    steps = np.array([number for number, *_ in engine.truth])
    for slot in range(len(LAYERS)):
        for window, counted in enumerate(trace.counts[:, slot]):
            here = chosen[steps // 4 == window, slot].ravel()
            np.testing.assert_array_equal(counted, np.bincount(here, minlength=EXPERTS))
    assert recorder.control("recent")["rows"] is None  # nothing of a single token, to anyone


def test_a_recording_ends_at_its_time(tmp_path: Path) -> None:
    engine = FakeEngine()
    recorder = start(tmp_path / "t", engine, duration_s=0.2)
    step(recorder, engine, {"a": 4}, new=[Asked("a", 4)])
    until = time.monotonic() + 20
    while recorder.control("status")["recording"] and time.monotonic() < until:
        time.sleep(0.05)
    step(recorder, engine, {"a": 1})
    status = recorder.control("status")
    assert (status["tokens"], status["dropped"], status["closing"]) == (4, {}, False)
    assert status["seconds"] == 0.2
    assert open_trace(tmp_path / "t").manifest.complete
    assert recorder.control("start", {"output": str(tmp_path / "u")})["recording"]
    recorder.close()
