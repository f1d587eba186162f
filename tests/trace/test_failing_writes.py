"""What a full disk, a damaged segment or a wrong row costs: what was refused, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from moeprof.errors import MoeprofError, TraceError
from moeprof.model import MoEModel
from moeprof.trace import (
    Request,
    TelemetrySample,
    TokenRows,
    Trace,
    TraceWriter,
    open_trace,
    segments,
    synthesize_rows,
    validate_trace,
    write_counts,
)
from moeprof.trace.schema import REQUEST_SCHEMA, Manifest
from moeprof.trace.sides import SideFile
from moeprof.trace.streams import StreamWriter, read_batches
from tests.trace.test_store import assert_same, part

SEGMENT = "segments/000000.arrows"


@pytest.fixture
def rows(model: MoEModel) -> TokenRows:
    return synthesize_rows(model, 3000, requests=1)[0]


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """The system writes no file beyond `size` bytes: a write that crosses it is cut short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def with_id(rows: TokenRows, value: int, **changes: Any) -> TokenRows:
    experts = rows.experts.astype(np.int64)
    experts[7, 1, 2] = value
    return TokenRows(**{**vars(rows), "experts": experts, **changes})


@pytest.mark.parametrize("value", [-1, 16, 300])
def test_an_id_that_is_no_expert_is_refused(
    tmp_path: Path, model: MoEModel, rows: TokenRows, value: int
) -> None:
    sentence = f"layer 2: id {value} of row 7 is not one of 16 experts"
    with TraceWriter(tmp_path / "t", model) as out, pytest.raises(TraceError, match=sentence):
        out.write(with_id(rows, value))
    with pytest.raises(TraceError, match=sentence):
        Trace.in_memory(model, with_id(rows, value))


def test_an_id_that_was_not_recorded_may_be_anything(model: MoEModel, rows: TokenRows) -> None:
    recorded = np.ones(rows.experts.shape[:2], bool)
    recorded[7, 1] = False
    trace = Trace.in_memory(model, with_id(rows, -1, recorded=recorded))
    np.testing.assert_array_equal(trace.experts(2), np.delete(rows.experts[:, 1], 7, axis=0))
    assert trace.unrecorded == 1


def test_ids_that_are_no_integers_are_refused(model: MoEModel, rows: TokenRows) -> None:
    floats = TokenRows(**{**vars(rows), "experts": rows.experts.astype(np.float32)})
    with pytest.raises(TraceError, match="must be integers, not float32"):
        Trace.in_memory(model, floats)


def test_a_step_that_decreases_is_refused(tmp_path: Path, model: MoEModel, rows: TokenRows) -> None:
    falling = rows.step.copy()
    falling[5] = 10_000
    with TraceWriter(tmp_path / "t", model) as out:
        with pytest.raises(TraceError, match="row 6: step 0 follows step 10000"):
            out.write(TokenRows(**{**vars(rows), "step": falling}))
        out.write(rows)
        with pytest.raises(TraceError, match=f"row 0: step 0 follows step {rows.step[-1]}"):
            out.write(rows)
    assert_same(open_trace(tmp_path / "t"), rows)


def test_a_segment_damaged_while_open_is_not_certified(
    tmp_path: Path, model: MoEModel, rows: TokenRows
) -> None:
    with TraceWriter(tmp_path / "t", model) as out:
        for start in (0, 1000, 2000):
            out.write(part(rows, start, start + 1000))
            out.flush()
        segment = out.path / SEGMENT
        data = bytearray(segment.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        segment.write_bytes(data)
    stored = Manifest.load(tmp_path / "t").stored(SEGMENT)
    assert stored is not None and stored.rows == 3000
    problems = validate_trace(tmp_path / "t").problems
    left = open_trace(tmp_path / "t").tokens
    assert 0 < left < 3000
    assert any(p.startswith(f"{SEGMENT}: {left:,} of 3,000 rows can be read") for p in problems)
    assert f"manifest.json: 3,000 tokens were written, {left:,} can be read" in problems


def test_after_a_failed_write_the_next_ones_are_whole(
    tmp_path: Path, model: MoEModel, rows: TokenRows
) -> None:
    with TraceWriter(tmp_path / "t", model) as out:
        out.write(part(rows, 0, 1000))
        out.flush()
        out.write(part(rows, 1000, 2000))
        end = (out.path / SEGMENT).stat().st_size + 3000
        with files_end_at(end), pytest.raises(MoeprofError, match=r"/t: File too large$") as caught:
            out.flush()
        assert isinstance(caught.value, OSError) and caught.value.exit_code == 1
        out.write(part(rows, 2000, 3000))
    trace = open_trace(tmp_path / "t")
    assert trace.problems == ()
    assert trace.dropped == {"write failed": 1000}
    np.testing.assert_array_equal(
        trace.experts(1), np.delete(rows.experts[:, 0], slice(1000, 2000), 0)
    )
    assert validate_trace(tmp_path / "t").problems == []


def test_a_failed_stream_takes_no_more(tmp_path: Path, model: MoEModel, rows: TokenRows) -> None:
    stream = StreamWriter(tmp_path / "s", REQUEST_SCHEMA)
    batch = pa.RecordBatch.from_pylist([{"index": 1}], schema=REQUEST_SCHEMA)
    stream.append(batch)
    with files_end_at(stream.bytes + 10), pytest.raises(OSError):
        stream.append(batch)
    assert (tmp_path / "s").stat().st_size == stream.bytes
    with pytest.raises(TraceError, match="takes no more rows"):
        stream.append(batch)
    stream.close()
    assert [b.num_rows for b in read_batches(tmp_path / "s")[0]] == [1]


def test_no_request_and_no_sample_is_lost_to_a_full_disk(tmp_path: Path, model: MoEModel) -> None:
    requests = tuple(Request(index, label="x" * 100) for index in range(100))
    samples = tuple(TelemetrySample(float(index), 0) for index in range(100))
    with TraceWriter(tmp_path / "t", model) as out:
        for half in (slice(0, 50), slice(50, 100)):
            with files_end_at(2_500 if half.start else 1 << 30):
                for request, sample in zip(requests[half], samples[half], strict=True):
                    out.put_request(request)
                    out.put_telemetry(sample)
                with contextlib.suppress(MoeprofError):
                    out.flush()
        size = (out.path / "requests.arrows").stat().st_size
        assert len(open_trace(out.path).requests) == 50 and size > 2_500
    trace = open_trace(tmp_path / "t")
    assert trace.problems == ()
    assert (trace.requests, trace.telemetry) == (requests, samples)
    assert not list((tmp_path / "t").rglob("*.tmp"))


def test_requests_that_cannot_be_written_keep_no_token_back(
    tmp_path: Path, model: MoEModel, rows: TokenRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TraceWriter(tmp_path / "t", model) as out:
        out.put_request(Request(0))
        out.write(rows)
        with monkeypatch.context() as patch:
            patch.setattr(SideFile, "flush", refuse)
            with pytest.raises(MoeprofError, match="No space left"):
                out.flush()
        assert open_trace(out.path).tokens == 3000
    assert open_trace(tmp_path / "t").requests == (Request(0),)


def test_closing_on_a_full_disk_saves_what_it_can(
    tmp_path: Path, model: MoEModel, rows: TokenRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = TraceWriter(tmp_path / "t", model)
    out.write(part(rows, 0, 1000))
    out.flush()
    out.write(part(rows, 1000, 1500))
    out.drop(7, "behind")
    monkeypatch.setattr(StreamWriter, "append", refuse)
    with pytest.raises(MoeprofError, match="/t: No space left on device") as caught:
        out.close()
    assert "\n" not in str(caught.value)
    out.close()
    trace = open_trace(tmp_path / "t")
    assert trace.dropped == {"behind": 7, "write failed": 500}
    assert trace.tokens == trace.manifest.tokens == 1000
    assert trace.problems == () and not trace.manifest.complete


def test_a_failure_to_compact_leaves_the_segment_as_it_was(
    tmp_path: Path, model: MoEModel, rows: TokenRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamWriter, "move", refuse)
    with TraceWriter(tmp_path / "t", model) as out:
        for start in (0, 1000, 2000):
            out.write(part(rows, start, start + 1000))
            out.flush()
    assert validate_trace(tmp_path / "t").problems == []
    assert_same(open_trace(tmp_path / "t"), rows)
    assert not list((tmp_path / "t").rglob("*.tmp"))


def test_a_file_that_cannot_be_sealed_does_not_take_others_with_it(
    tmp_path: Path, model: MoEModel, rows: TokenRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = segments.seal

    def unreadable(root: Path, stream: StreamWriter, **options: Any) -> Any:
        return refuse() if "000001" in str(stream.path) else seal(root, stream, **options)

    monkeypatch.setattr(segments, "seal", unreadable)
    out = TraceWriter(tmp_path / "t", model, segment_bytes=1)
    with pytest.raises(MoeprofError, match="No space left"):
        for start in (0, 1000, 2000):
            out.write(part(rows, start, start + 1000))
            with contextlib.suppress(MoeprofError):
                out._flush_tokens()
        out.close()
    files = [stored.file for stored in Manifest.load(tmp_path / "t").files]
    assert files == ["segments/000000.arrows", "segments/000002.arrows"]
    assert open_trace(tmp_path / "t").tokens == 3000


def test_counts_on_a_full_disk_are_one_line(
    tmp_path: Path, model: MoEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamWriter, "append", refuse)
    with pytest.raises(MoeprofError, match="/t: No space left on device"):
        write_counts(tmp_path / "t", model, np.ones((1, 3, 16), np.int64))


@pytest.mark.parametrize(
    ("put", "read"),
    [
        (lambda out: out.put_request(Request(0)), lambda trace: len(trace.requests)),
        (lambda out: out.put_telemetry(TelemetrySample(0.0, 0)), lambda t: len(t.telemetry)),
    ],
)
def test_what_is_not_a_token_waits_half_a_second_too(
    tmp_path: Path,
    model: MoEModel,
    put: Callable[[TraceWriter], None],
    read: Callable[[Trace], int],
) -> None:
    now = [0.0]
    out = TraceWriter(tmp_path / "t", model, clock=lambda: now[0])
    put(out)
    out.tick()
    assert read(open_trace(out.path)) == 0
    now[0] = 0.5
    out.tick()
    assert read(open_trace(out.path)) == 1
    out.close()


def test_dropped_tokens_are_on_disk_within_a_second_saved_once_a_second(
    tmp_path: Path, model: MoEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, saves, save = [0.0], [], Manifest.save
    out = TraceWriter(tmp_path / "t", model, clock=lambda: now[0])
    monkeypatch.setattr(Manifest, "save", lambda *args: (saves.append(now[0]), save(*args)))
    for tick in range(1, 41):
        now[0] = tick / 4
        out.drop(1, "behind")
        out.tick()
        assert sum(open_trace(out.path).dropped.values()) >= tick - 4
    assert len(saves) <= 10
    out.close()


def test_writing_a_row_costs_the_same_however_many_wait(
    tmp_path: Path, model: MoEModel, rows: TokenRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    singles = [part(rows, token, token + 1) for token in range(1000)]
    asked, length = [0], TokenRows.__len__

    def counted(self: TokenRows) -> int:
        asked[0] += 1
        return length(self)

    out = TraceWriter(tmp_path / "t", model, clock=lambda: 0.0)
    monkeypatch.setattr(TokenRows, "__len__", counted)
    for single in singles:
        out.write(single)
    assert asked[0] < 10 * len(singles)
    out.close()


@pytest.mark.parametrize("layers", [[], [1, 1]])
def test_layers_that_cannot_be_are_refused(
    tmp_path: Path, model: MoEModel, layers: list[int]
) -> None:
    with pytest.raises(TraceError, match="layers: "):
        TraceWriter(tmp_path / "t", model, layers=layers)
    assert not (tmp_path / "t").exists()
