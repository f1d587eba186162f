"""Full disks, lost permissions and stalled writers: what serves never waits and never raises.

No engine: what stands here is what every engine's capture stands on, with hooks that offer rows.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture.failure import FailureLatch
from moeprof.capture.limits import Limits
from moeprof.capture.pipeline import Pipeline, open_pipeline
from moeprof.capture.sink import TraceSink
from moeprof.errors import MoeprofError
from moeprof.model import MoEModel
from moeprof.trace import (
    Request,
    TelemetrySample,
    TokenRows,
    TraceWriter,
    open_trace,
    synthesize_rows,
    validate_trace,
)
from moeprof.trace.schema import Manifest
from moeprof.trace.streams import StreamWriter
from tests.conftest import small_config

STEP_ROWS = 200
NOBODY = 65_534
PATIENCE_S = 60.0  # after which a test fails instead of hanging


class Hook:
    """What stands in an engine: offers a step and goes on, counting those that are refused."""

    def __init__(self, pipeline: Pipeline, rows: TokenRows) -> None:
        self.pipeline = pipeline
        self.offered = self.refused = 0
        self.most_pending = 0
        self._rows = rows

    def step(self) -> None:
        rows = replace(self._rows, step=np.full(STEP_ROWS, self.offered // STEP_ROWS))
        size = rows.experts.nbytes + 4096
        if not self.pipeline.drain.offer(rows, size):
            self.refused += STEP_ROWS
        self.offered += STEP_ROWS
        self.most_pending = max(self.most_pending, self.pipeline.drain.pending_bytes)


class Rows:
    """The handler of such a hook: its items are rows."""

    def __init__(self, sink: TraceSink, latch: FailureLatch) -> None:
        self._sink = sink

    def handle(self, items: Sequence[Any]) -> None:
        for rows in items:
            self._sink.write(rows)

    def finish(self) -> None:
        """Nothing is held."""


@contextlib.contextmanager
def recorded(path: Path, limit: int = 1 << 28, **options: Any) -> Iterator[Hook]:
    model = MoEModel.from_config(small_config(experts=300))  # 16-bit ids: large rows
    rows, _ = synthesize_rows(model, STEP_ROWS, requests=1)
    with open_pipeline(
        lambda: TraceWriter(path, model, **options),
        path,
        Rows,
        labels=None,
        max_pending_bytes=limit,
        limits=Limits(),
    ) as pipeline:
        yield Hook(pipeline, rows)


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("options", [{}, {"aggregate_steps": 1}], ids=["rows", "counts"])
def test_a_full_disk_ends_the_recording_and_nothing_else(
    small_disk: Path, options: dict[str, Any]
) -> None:
    (small_disk / "other").write_bytes(bytes(1 << 20))  # of another program
    path = small_disk / "t.moetrace"
    with recorded(path, **options) as hook:
        hook.step()
        hook.step()
        wait_until(lambda: (path / "segments" / "000000.arrows").exists())
        while hook.pipeline.recording.error is None:
            assert hook.offered < 10_000_000
            hook.step()
            if hook.offered % (50 * STEP_ROWS) == 0:
                wait_until(lambda: hook.pipeline.drain.pending_bytes < 1 << 20)
        for _ in range(20):
            hook.step()
    recording = hook.pipeline.recording
    assert recording.error is not None and "No space left on device" in recording.error
    assert recording.tokens > 0 and hook.refused == 0
    assert recording.tokens + recording.dropped == hook.offered
    trace = open_trace(path)
    assert trace.tokens == recording.tokens, "what was written before is there"
    assert not any("content differs" in problem for problem in validate_trace(path).problems)
    (small_disk / "other").unlink()
    with recorded(small_disk / "next.moetrace", **options) as hook:
        hook.step()
    assert hook.pipeline.recording.error is None, "once there is room, the next one works"
    assert open_trace(small_disk / "next.moetrace").tokens == STEP_ROWS


def test_a_disk_that_is_full_at_the_start_is_one_line(small_disk: Path) -> None:
    with contextlib.suppress(OSError):
        (small_disk / "other").write_bytes(bytes(4 << 20))
    with (
        pytest.raises(MoeprofError, match="No space left on device") as refused,
        recorded(small_disk / "t"),
    ):
        pass
    assert "\n" not in str(refused.value)


@contextlib.contextmanager
def no_permission(path: Path) -> Iterator[None]:
    """For a while nothing below `path` may be opened by this process."""
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
    else:
        path.chmod(0)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        else:
            path.chmod(0o700)


def test_permission_lost_ends_the_recording_and_what_was_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "t.moetrace"
    with recorded(path, segment_bytes=1 << 16) as hook:
        hook.step()
        wait_until(lambda: (path / "segments" / "000000.arrows").exists())
        with no_permission(path):
            end = time.monotonic() + PATIENCE_S
            while hook.pipeline.recording.error is None and time.monotonic() < end:
                hook.step()
                time.sleep(0.001)
        hook.step()
    recording = hook.pipeline.recording
    assert recording.error is not None and "Permission denied" in recording.error
    assert recording.tokens + recording.dropped == hook.offered
    assert open_trace(path).tokens == recording.tokens >= STEP_ROWS


def test_who_offers_never_waits_for_a_writer_that_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write to the segment stands still until we let it go, as on a disk that hangs.

    Every offer is made while it stands, so none can have waited for it.
    """
    path, limit = tmp_path / "t.moetrace", 1 << 20
    standing, released = threading.Event(), threading.Event()
    append = StreamWriter.append

    def stalled(self: StreamWriter, batch: Any) -> None:
        standing.set()
        assert released.wait(PATIENCE_S)
        append(self, batch)

    monkeypatch.setattr(StreamWriter, "append", stalled)
    with recorded(path, limit) as hook:
        hook.step()
        assert standing.wait(PATIENCE_S)
        for _ in range(2000):
            hook.step()
        assert not released.is_set() and hook.refused > 0
        assert hook.most_pending <= limit
        assert len(hook.pipeline.drain._queue) <= limit // 4096
        released.set()
    recording = hook.pipeline.recording
    assert recording.error is None
    assert recording.tokens == open_trace(path).tokens == hook.offered - hook.refused
    _, rows = np.unique(open_trace(path).step, return_counts=True)
    assert (rows == STEP_ROWS).all(), "whole steps or none"


def test_files_are_the_owners_alone_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the umask, and those that stand only until they take another's place."""
    seen: dict[str, int] = {}

    def look(path: Path) -> None:
        for entry in [path, *path.rglob("*")]:
            with contextlib.suppress(FileNotFoundError):
                seen[str(entry.relative_to(tmp_path))] = entry.stat().st_mode & 0o777

    def looking(original: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            look(tmp_path / "deep")
            result = original(*args, **options)
            look(tmp_path / "deep")
            return result

        return call

    monkeypatch.setattr(os, "replace", looking(os.replace))
    monkeypatch.setattr(StreamWriter, "append", looking(StreamWriter.append))
    monkeypatch.setattr(Manifest, "save", looking(Manifest.save))
    before = os.umask(0)
    try:
        model = MoEModel.from_config(small_config())
        path = tmp_path / "deep" / "deeper" / "t.moetrace"
        with TraceWriter(path, model, max_bytes=1 << 20, segment_bytes=1 << 14) as out:
            rows, _ = synthesize_rows(model, 50, requests=1)
            for step in range(60):
                out.write(replace(rows, step=np.full(50, step)))
                out.put_request(Request(step, label="x" * 300))
                out.put_telemetry(TelemetrySample(float(step), 0))
                out.flush()
    finally:
        os.umask(before)
    kinds = {Path(name).suffix for name in seen}
    assert {".tmp", ".json", ".arrows"} <= kinds, "drafts were seen, too"
    folders = {"deep", "deep/deeper", "deep/deeper/t.moetrace", "deep/deeper/t.moetrace/segments"}
    assert {name for name, mode in seen.items() if mode == 0o700} == folders
    assert {mode for name, mode in seen.items() if name not in folders} == {0o600}
