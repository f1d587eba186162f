"""A trace that is written while it is watched: growth, rotation, torn ends, ranks, counts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof import MoEModel, Trace, TraceWriter, analyze_load, write_counts
from moeprof.errors import TraceError
from moeprof.live import State, StepRows, TraceSource, Watch
from moeprof.live.join import StepJoin, counting_ranks
from moeprof.live.source import Shape
from moeprof.live.tail import FolderTail
from moeprof.trace import TokenRows
from moeprof.trace.ranks import Rank
from moeprof.trace.schema import MANIFEST
from tests.conftest import small_config
from tests.live.rows import engine_rows, part

MODEL = MoEModel.from_config(small_config())


@pytest.fixture
def writer(tmp_path: Path, model: MoEModel) -> Iterator[TraceWriter]:
    with TraceWriter(tmp_path / "run.moetrace", model, segment_bytes=15_000) as opened:
        yield opened


def polled(source: TraceSource) -> list[StepRows]:
    """Steps of polls up to one that brings nothing."""
    found: list[StepRows] = []
    while (poll := source.poll()).steps or poll.behind:
        found += poll.steps
    return found


def same_steps(found: list[StepRows], rows: TokenRows) -> None:
    """`found` are the steps of `rows`, whole and in order."""
    assert [step.step for step in found] == list(dict.fromkeys(rows.step.tolist()))
    assert np.array_equal(np.concatenate([step.experts for step in found]), rows.experts)
    assert np.array_equal(np.concatenate([step.phase for step in found]), rows.phase)


def test_what_is_written_comes_once_and_in_order(writer: TraceWriter, model: MoEModel) -> None:
    rows = engine_rows(model, [5] * 300)
    found: list[StepRows] = []
    with closing(TraceSource(writer.path)) as source:
        assert source.poll().status.state is State.RECORDING
        for start in range(0, 300, 7):
            writer.write(part(rows, (rows.step >= start) & (rows.step < start + 7)))
            writer.flush()  # segments fill, are compacted and swapped in meanwhile
            found += source.poll().steps
        assert len(list((writer.path / "segments").iterdir())) > 2
        writer.drop(12, "too many")
        writer.close()
        last = source.poll()
        found += last.steps
        assert last.status.state is State.ENDED
        assert last.status.dropped == {"too many": 12}
        assert last.status.tokens == last.status.prefill_tokens + last.status.decode_tokens == 1500
    same_steps(found, rows)


def test_the_newest_step_waits_until_it_is_whole(writer: TraceWriter, model: MoEModel) -> None:
    rows = engine_rows(model, [4, 4, 4])
    with closing(TraceSource(writer.path)) as source:
        writer.write(part(rows, np.arange(12) < 6))
        writer.flush()
        assert [step.step for step in source.poll().steps] == [0]
        writer.write(part(rows, np.arange(12) >= 6))
        writer.flush()
        (second,) = source.poll().steps
        assert (second.step, len(second.phase)) == (1, 4)
        (third,) = source.poll().steps  # nothing came: it is taken for whole
        assert (third.step, len(third.phase)) == (2, 4)


@settings(max_examples=30)
@given(cuts=st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_a_stream_cut_anywhere_reads_on_where_it_stopped(cuts: list[float]) -> None:
    rows = engine_rows(MODEL, [3] * 20)
    with TemporaryDirectory() as name:
        folder = Path(name)
        with TraceWriter(folder / "whole.moetrace", MODEL) as writer:
            for step in range(20):
                writer.write(part(rows, rows.step == step))
                writer.flush()
            content = (writer.path / "segments" / "000000.arrows").read_bytes()
            growing = folder / "growing.moetrace"
            shutil.copytree(writer.path, growing)
        segment = growing / "segments" / "000000.arrows"
        segment.write_bytes(b"")
        found: list[StepRows] = []
        with closing(TraceSource(growing, follow=True)) as source:
            for cut in [*sorted(cuts), 1.0]:
                with open(segment, "r+b") as file:
                    file.write(content[: int(cut * len(content))])
                found += source.poll().steps
            found += polled(source)
    same_steps(found, rows)


def test_a_large_trace_is_watched_from_near_its_end(writer: TraceWriter, model: MoEModel) -> None:
    rows = engine_rows(model, [5] * 400)
    for start in range(0, 400, 20):
        writer.write(part(rows, (rows.step >= start) & (rows.step < start + 20)))
        writer.flush()
    with closing(FolderTail(writer.path, start_bytes=20_000)) as tail:
        read = tail.read()
        assert tail.tokens == 2000
        seen = np.concatenate([piece.step for piece in read.rows])
        assert 0 < len(seen) == tail.prefill + tail.decode < 1200
        assert np.array_equal(seen, rows.step[-len(seen) :])


def test_a_poll_reads_a_bounded_part(
    writer: TraceWriter, model: MoEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moeprof.live.tail.POLL_BYTES", 10_000)
    rows = engine_rows(model, [5] * 200)
    for step in range(0, 200, 20):
        writer.write(part(rows, (rows.step >= step) & (rows.step < step + 20)))
        writer.flush()
    with closing(TraceSource(writer.path)) as source:
        first = source.poll()
        assert first.behind and len(first.steps) < 100
        same_steps([*first.steps, *polled(source)], rows)


def test_segments_that_were_let_go_are_passed_over(tmp_path: Path, model: MoEModel) -> None:
    rows = engine_rows(model, [50] * 2000)
    path = tmp_path / "run.moetrace"
    with TraceWriter(path, model, max_bytes=1 << 20, rotate=True) as writer:
        with closing(TraceSource(path)) as source:
            seen: list[StepRows] = []
            for start in range(0, 2000, 100):
                writer.write(part(rows, (rows.step >= start) & (rows.step < start + 100)))
                writer.flush()
                if start % 600 == 0:
                    seen += source.poll().steps
            seen += polled(source)
            status = source.poll().status
        assert writer.manifest.rotated_tokens
        assert status.rotated == writer.manifest.rotated_tokens
    steps = [step.step for step in seen]
    assert steps == sorted(set(steps)) and steps[-1] == 1999
    for step in seen:
        assert np.array_equal(step.experts, rows.experts[rows.step == step.step])


def write_ranks(path: Path, model: MoEModel, rows: TokenRows) -> None:
    """`rows` as two data-parallel groups of two pipeline ranks write them: odd rows are dp 1's."""
    layers = model.moe_layers
    for dp in (0, 1):
        for pp, own in enumerate((layers[:2], layers[2:])):
            folder = path / "ranks" / f"dp{dp:02d}-pp{pp:02d}-tp00"
            folder.parent.mkdir(parents=True, exist_ok=True)
            kept = part(rows, np.arange(len(rows)) % 2 == dp)
            columns = [layers.index(layer) for layer in own]
            with TraceWriter(folder, model, layers=own) as writer:
                writer.write(replace(kept, experts=kept.experts[:, columns]))
                writer.drop(3 + pp, "behind")


def test_ranks_are_steps_of_one_engine(tmp_path: Path, model: MoEModel) -> None:
    rows = engine_rows(model, [6] * 30)
    path = tmp_path / "run.moetrace"
    write_ranks(path, model, rows)
    with TraceWriter(tmp_path / "plain.moetrace", model) as writer:
        writer.write(rows)
    figures = {}
    for name in ("run.moetrace", "plain.moetrace"):
        with closing(TraceSource(tmp_path / name)) as source:
            figures[name] = Watch(source, slots=[3, 12], steps=1000).caught_up()
    ranks, plain = figures["run.moetrace"], figures["plain.moetrace"]
    assert ranks.tokens == ranks.window_tokens == len(rows)
    assert (ranks.prefill_tokens, ranks.window_steps) == (plain.prefill_tokens, 30)
    assert ranks.per_layer == plain.per_layer and ranks.hottest == plain.hottest
    assert ranks.distinct_per_step == plain.distinct_per_step
    assert [row.accesses for row in ranks.lru] == [row.accesses for row in plain.lru]
    assert ranks.dropped == {"behind": 8}  # 4 of each group, which pipeline ranks share
    assert [rank.name for rank in ranks.ranks] == [
        "dp00-pp00-tp00", "dp00-pp01-tp00", "dp01-pp00-tp00", "dp01-pp01-tp00",
    ]  # fmt: skip


def test_ranks_wait_for_each_other_but_not_for_ever(model: MoEModel) -> None:
    shape = Shape(tuple(model.moe_layers), model.experts, model.top_k)
    join = StepJoin([Rank(0), Rank(1)], [shape.layers, shape.layers], shape)
    rows = engine_rows(model, [2] * 600)
    join.push(0, part(rows, rows.step < 5))
    assert join.take(0.0) == []
    join.push(1, part(rows, rows.step < 3))
    assert [(s.step, len(s.phase)) for s in join.take(1.0)] == [(0, 4), (1, 4)]
    join.push(0, part(rows, (rows.step >= 5) & (rows.step < 400)))
    assert [s.step for s in join.take(1.4)] == []
    assert [s.step for s in join.take(1.6)] == [2, 3, 4]  # what was there at 0 s
    join.push(0, part(rows, rows.step >= 400))
    assert [s.step for s in join.take(2.0)] == []
    assert [s.step for s in join.take(3.0)] == list(range(5, 400))
    assert [s.step for s in join.take(3.0, rest=True)] == list(range(400, 600))


def test_pipeline_ranks_count_tokens_once() -> None:
    ranks = [Rank(0, 1), Rank(0, 0), Rank(1, 1), Rank(0, 0, 1)]
    assert counting_ranks(ranks) == [False, True, True, True]


def test_ranks_that_come_later_are_taken_in(tmp_path: Path, model: MoEModel) -> None:
    path = tmp_path / "run.moetrace"
    (path / "ranks").mkdir(parents=True)
    with closing(TraceSource(path)) as source:
        first = source.poll().status
        assert first.state is State.WAITING and "nothing has begun" in first.words
        write_ranks(path, model, engine_rows(model, [4] * 3))
        poll = source.poll()
        assert poll.status.shape == Shape(tuple(model.moe_layers), model.experts, model.top_k)
        assert len(poll.steps) == 3 and poll.status.epoch != first.epoch


def test_counts_give_load_and_no_more(tmp_path: Path, model: MoEModel) -> None:
    counts = np.random.default_rng(0).integers(0, 50, (9, 3, 16))
    path = tmp_path / "run.moetrace"
    write_counts(path, model, counts)
    with closing(TraceSource(path)) as source:
        figures = Watch(source, steps=4).caught_up()
    load = counts[-4:].sum(axis=0)
    assert [n.imbalance for n in figures.per_layer] == pytest.approx(
        load.max(axis=1) / load.mean(axis=1)
    )
    assert figures.lru == [] and figures.distinct_per_step is None
    assert figures.window_steps == 4 and figures.state == "ended"


def test_a_recording_of_counts_is_watched_window_by_window(tmp_path: Path, model: MoEModel) -> None:
    rows = engine_rows(model, [4] * 40)
    path = tmp_path / "run.moetrace"
    windows = []
    with (
        TraceWriter(path, model, aggregate_steps=5) as writer,
        closing(TraceSource(path)) as source,
    ):
        watch = Watch(source, steps=3)
        for step in range(40):
            writer.write(part(rows, rows.step == step))
            writer.flush()
            windows.append(watch.poll().window_steps)
        writer.close()
        figures = watch.poll()
    assert windows[4] == 0 and windows[9] == 1 and windows[-1] == 3
    assert figures.state == "ended" and figures.tokens == 160
    assert (figures.prefill_tokens, figures.window_tokens) == (int((rows.phase == 0).sum()), 60)
    load = analyze_load(Trace.in_memory(model, part(rows, rows.step >= 25)))
    assert [n.imbalance for n in figures.per_layer] == [n.imbalance for n in load.per_layer]
    assert figures.lru == [] and figures.distinct_per_step is None


def test_a_trace_that_nobody_writes_is_shown_once(tmp_path: Path, model: MoEModel) -> None:
    rows = engine_rows(model, [4] * 3)
    writer = TraceWriter(tmp_path / "run.moetrace", model)
    writer.write(rows)
    writer.flush()
    later = os.stat(writer.path / "segments" / "000000.arrows").st_mtime + 7200
    with closing(TraceSource(writer.path, clock=lambda: later)) as source:
        poll = source.poll()
        assert poll.status.state is State.ENDED and len(poll.steps) == 3
        assert poll.status.words == "its writer did not close it and has written nothing for 2 h"
    with closing(TraceSource(writer.path, follow=True, clock=lambda: later)) as source:
        status = source.poll().status
        assert status.state is State.RECORDING and "nothing was written for 2 h" in status.words
    writer.close()


def test_a_trace_that_goes_and_comes_back(writer: TraceWriter, model: MoEModel) -> None:
    rows = engine_rows(model, [4] * 3)
    writer.write(rows)
    writer.flush()
    away = writer.path.with_name("away")
    with closing(TraceSource(writer.path)) as source:
        watch = Watch(source, steps=10)
        watch.poll()
        before = watch.poll()
        writer.path.rename(away)
        gone = watch.poll()
        assert gone.state == "gone" and gone.errors == 1 and MANIFEST in gone.words
        assert gone.per_layer == before.per_layer and gone.tokens == 12
        away.rename(writer.path)
        assert watch.poll().state == "recording"


def test_damaged_ids_are_passed_over_and_said(tmp_path: Path, model: MoEModel) -> None:
    path = tmp_path / "run.moetrace"
    with TraceWriter(path, model) as writer:
        writer.write(engine_rows(model, [4] * 3))
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | {"experts": 2}))
    with closing(TraceSource(path)) as source:
        poll = source.poll()
    assert poll.steps == [] and "is not one of 2 experts" in poll.status.words


def test_a_trace_that_is_recorded_anew_begins_anew(tmp_path: Path, model: MoEModel) -> None:
    path = tmp_path / "run.moetrace"
    rows = engine_rows(model, [4] * 9)
    with closing(TraceSource(path, follow=True)) as source:
        watch = Watch(source, steps=100)
        assert watch.poll().state == "waiting"
        with TraceWriter(path, model, clock_base=1.0) as writer:
            writer.write(rows)
        assert watch.poll().window_steps == 9
        with TraceWriter(path, model, clock_base=2.0, force=True) as writer:
            writer.write(part(rows, rows.step < 3))
        figures = watch.poll()
        assert (figures.window_steps, figures.tokens) == (3, 12)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.touch()])
def test_what_is_no_trace_is_refused(tmp_path: Path, make: object) -> None:
    path = tmp_path / "run.moetrace"
    make(path)  # type: ignore[operator]
    with pytest.raises(TraceError, match=r"run.moetrace: no"):
        TraceSource(path)
