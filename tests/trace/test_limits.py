"""A trace never outgrows its size limit, and what the limit cost is counted."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import TraceError
from moeprof.model import MoEModel
from moeprof.report.text.trace import trace_info_text
from moeprof.trace import (
    Request,
    TelemetrySample,
    TokenRows,
    TraceWriter,
    describe_trace,
    open_trace,
    reader,
    segments,
    synthesize_rows,
    validate_trace,
)
from moeprof.trace.columns import to_batch
from moeprof.trace.limits import SizeLimit
from moeprof.trace.schema import REQUEST_SCHEMA, Manifest
from moeprof.trace.sides import SideFile
from tests.conftest import small_config
from tests.killing import progress_until_killed
from tests.trace.test_failing_writes import refuse
from tests.trace.test_store import part

MIB = 1 << 20


def stored(path: Path) -> int:
    """Bytes of every file of the trace, some of which are just being replaced."""
    sizes = 0
    for file in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            sizes += file.stat().st_size if file.is_file() else 0
    return sizes


@pytest.fixture(scope="module")
def many(model: MoEModel) -> TokenRows:
    """More rows than 1 MiB takes, of 100 requests."""
    return synthesize_rows(model, 100_000, requests=100)[0]


def fill(out: TraceWriter, rows: TokenRows, size: int = 500) -> list[tuple[bool, int]]:
    """Offer all rows, flushed at each part: what was taken, and the bytes that were on disk."""
    steps = []
    for start in range(0, len(rows), size):
        taken = out.write(part(rows, start, start + size))
        out.put_request(Request(start // 1000, label="x"))
        out.flush()
        steps.append((taken, stored(out.path)))
    return steps


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_full_trace_is_a_whole_prefix_and_closes_complete(
    tmp_path: Path, model: MoEModel, many: TokenRows, compression: str | None
) -> None:
    with TraceWriter(tmp_path / "t", model, max_bytes=MIB, compression=compression) as out:
        steps = fill(out, many)
        assert out.full or compression
    assert max(size for _, size in steps) < MIB and stored(tmp_path / "t") < MIB
    taken = [ok for ok, _ in steps]
    assert taken == sorted(taken, reverse=True), "nothing is taken once it is full"
    trace = open_trace(tmp_path / "t")
    assert trace.tokens == 500 * sum(taken) > 15_000
    refused = len(many) - trace.tokens
    assert trace.dropped == ({"size limit": refused} if refused else {})
    np.testing.assert_array_equal(trace.experts(2), many.experts[: trace.tokens, 1])
    assert trace.manifest.complete and validate_trace(tmp_path / "t").problems == []


def test_most_of_the_limit_is_used(tmp_path: Path, model: MoEModel, many: TokenRows) -> None:
    with TraceWriter(tmp_path / "t", model, max_bytes=MIB) as out:
        fill(out, many, size=2000)
    assert stored(tmp_path / "t") > 0.7 * MIB


def test_rotation_keeps_the_newest_rows(tmp_path: Path, model: MoEModel, many: TokenRows) -> None:
    with TraceWriter(tmp_path / "t", model, max_bytes=MIB, rotate=True) as out:
        steps = fill(out, many)
        assert not out.full
    assert all(ok for ok, _ in steps)
    assert max(size for _, size in steps) < MIB
    trace, info = open_trace(tmp_path / "t"), validate_trace(tmp_path / "t")
    assert info.problems == [] and trace.dropped == {}
    assert trace.tokens + info.rotated_tokens == len(many)
    assert trace.tokens > 15_000 and min(size for _, size in steps[-20:]) > 0.6 * MIB
    np.testing.assert_array_equal(trace.experts(2), many.experts[-trace.tokens :, 1])
    np.testing.assert_array_equal(trace.step, many.step[-trace.tokens :])
    first = min(file.name for file in (tmp_path / "t" / "segments").iterdir())
    assert first == f"{trace.manifest.first_segment:06d}.arrows" != "000000.arrows"
    assert len(trace.requests) == 100, "requests without rows are still described"
    assert set(trace.request.tolist()) < {request.index for request in trace.requests}
    assert f"rotated   {info.rotated_tokens:,} older tokens let go" in trace_info_text(info)


def test_one_segment_larger_than_the_limit_allows_is_refused_whole(
    tmp_path: Path, model: MoEModel, many: TokenRows
) -> None:
    with TraceWriter(tmp_path / "t", model, max_bytes=MIB, rotate=True) as out:
        assert out.write(part(many, 0, 500))
        assert not out.write(part(many, 500, len(many)))
        assert not out.full
        assert out.write(part(many, 600, 700))
    trace = open_trace(tmp_path / "t")
    assert trace.dropped == {"size limit": len(many) - 500}
    assert (trace.tokens, trace.manifest.rotated_tokens) == (600, 0), "nothing went in vain"
    assert validate_trace(tmp_path / "t").problems == []


@pytest.mark.parametrize("moment", ["manifest", "file"])
def test_a_crash_while_a_segment_is_let_go_leaves_a_sound_trace(
    tmp_path: Path,
    model: MoEModel,
    many: TokenRows,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """The folder as it stands just before the manifest, or the file, is changed."""
    copies: list[Path] = []

    def copied(original: Any) -> Any:
        def copy(*args: Any, **options: Any) -> Any:
            if out.manifest.rotated_tokens:
                copies.append(tmp_path / f"copy-{len(copies)}")
                # The sealing thread may take its draft away meanwhile.
                shutil.copytree(tmp_path / "t", copies[-1], ignore=shutil.ignore_patterns("*.tmp"))
            return original(*args, **options)

        return copy

    out = TraceWriter(tmp_path / "t", model, max_bytes=MIB, rotate=True)
    patched, name = (Manifest, "save") if moment == "manifest" else (Path, "unlink")
    with monkeypatch.context() as patch:
        patch.setattr(patched, name, copied(getattr(patched, name)))
        for start in range(0, 60_000, 500):
            out.write(part(many, start, start + 500))
            out.flush()
            if copies:
                break
    trace = open_trace(copies[0])
    assert not any("missing" in problem for problem in trace.problems)
    assert trace.manifest.first_segment == (0 if moment == "manifest" else 1)
    assert (copies[0] / "segments" / "000000.arrows").is_file()
    kept = trace.tokens + trace.manifest.rotated_tokens
    np.testing.assert_array_equal(
        trace.experts(2), many.experts[trace.manifest.rotated_tokens : kept, 1]
    )
    out.close()


def test_a_reader_copes_with_a_segment_that_goes_while_it_opens(
    tmp_path: Path, model: MoEModel, many: TokenRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = TraceWriter(tmp_path / "t", model, max_bytes=MIB, rotate=True)
    fill(out, part(many, 0, 60_000))
    opened, load = [0], Manifest.load

    def load_then_write(folder: Path) -> Manifest:
        manifest = load(folder)
        opened[0] += 1
        if opened[0] == 1:
            fill(out, part(many, 60_000, 80_000))
        return manifest

    monkeypatch.setattr(reader.Manifest, "load", load_then_write)
    trace = open_trace(tmp_path / "t")
    assert not any("missing" in problem for problem in trace.problems)
    np.testing.assert_array_equal(trace.experts(2)[-1], many.experts[79_999, 1])
    out.close()


RECORDER = """
import json, sys, time
from moeprof.model import MoEModel
from moeprof.trace import TraceWriter, synthesize_rows
from tests.trace.test_store import part
model = MoEModel.from_config(json.loads(sys.argv[2]))
rows, _ = synthesize_rows(model, 400_000, requests=1)
writer = TraceWriter(sys.argv[1], model, max_bytes=1 << 20, rotate=True)
for start in range(0, 400_000, 200):
    writer.write(part(rows, start, start + 200))
    writer.tick()
    print(start, time.monotonic(), flush=True)
    time.sleep(0.002)
"""


def test_kill_9_while_rotating_loses_at_most_the_last_second(tmp_path: Path) -> None:
    path = tmp_path / "run.moetrace"
    config = json.dumps(small_config())
    due, _ = progress_until_killed(RECORDER, str(path), config, seconds=2.5)
    trace = open_trace(path)
    assert trace.manifest.rotated_tokens > 0, "the recorder hardly ran"
    assert trace.manifest.rotated_tokens + trace.tokens >= due
    assert stored(path) < MIB
    assert (np.diff(trace.position) == 1).all(), "the newest rows, without a gap"


def test_a_segment_that_cannot_be_let_go_costs_the_rows_and_no_more(
    tmp_path: Path, model: MoEModel, many: TokenRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = TraceWriter(tmp_path / "t", model, max_bytes=MIB, rotate=True)
    fill(out, part(many, 0, 30_000))
    with monkeypatch.context() as patch:
        patch.setattr(segments, "wait", refuse)
        with pytest.raises(OSError, match="No space left"):
            for start in range(30_000, 60_000, 500):
                out.write(part(many, start, start + 500))
    fill(out, part(many, 60_000, 90_000))
    out.close()
    info = validate_trace(tmp_path / "t")
    assert info.problems == [] and info.dropped["write failed"] >= 500
    seen = info.tokens + info.rotated_tokens + sum(info.dropped.values())
    assert seen == start + 500 + 30_000


@given(st.integers(1, 3000), st.sampled_from([1, 3, 8]), st.booleans(), st.booleans())
def test_no_batch_is_larger_than_it_was_said_to_be(
    tokens: int, top_k: int, nulls: bool, extras: bool
) -> None:
    model = MoEModel.from_config(small_config(top_k=top_k, experts=300 if nulls else 16))
    rows, _ = synthesize_rows(model, tokens)
    recorded = np.random.default_rng(tokens).random(rows.experts.shape[:2]) < 0.5
    rows = with_extras(rows, recorded if nulls else None) if extras else rows
    manifest = Manifest.make(
        clock_base=0.0,
        model={},
        layers=[1, 2, 3],
        experts=model.experts,
        top_k=top_k,
        margins=extras,
        next_layer=extras,
    )
    limit = SizeLimit(Path("nowhere"), MIB, manifest.segment_schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, manifest.segment_schema) as stream:
        stream.write_batch(to_batch(rows, manifest))
    assert sink.getvalue().size <= limit.batch_bytes(tokens) < 1.3 * sink.getvalue().size + 8192


def with_extras(rows: TokenRows, recorded: Any = None) -> TokenRows:
    """`rows` with every optional array but gate weights and token ids, and some NaN margins."""
    rng = np.random.default_rng(0)
    tokens, layers, k = rows.experts.shape
    margins = rng.random((tokens, layers)).astype(np.float16)
    margins[rng.random((tokens, layers)) < 0.1] = np.nan
    return TokenRows(
        **{
            **vars(rows),
            "recorded": recorded,
            "margins": margins,
            "next_experts": rows.experts[:, 1:].copy(),
            "next_weights": rng.random((tokens, layers - 1, k)).astype(np.float16),
        }
    )


@pytest.mark.parametrize("rotate", [False, True])
def test_requests_and_samples_have_their_share_and_no_more(tmp_path: Path, rotate: bool) -> None:
    side = SideFile(tmp_path / "r.arrows", REQUEST_SCHEMA, max_bytes=16_384, newest=rotate)
    for index in range(2000):
        side.put({"index": index, "label": "a label"}, index)
        side.flush()
        assert (tmp_path / "r.arrows").stat().st_size <= 16_384
    assert side.stream is not None
    side.stream.close()
    stream = pa.ipc.open_stream((tmp_path / "r.arrows").read_bytes())
    kept = stream.read_all()["index"].to_pylist()
    assert side.full != rotate
    assert len(kept) == len(set(kept)) > 60
    assert kept == (list(range(2000))[-len(kept) :] if rotate else list(range(len(kept))))


def test_a_recording_whose_requests_fill_their_share_is_full(
    tmp_path: Path, model: MoEModel, many: TokenRows
) -> None:
    with TraceWriter(tmp_path / "t", model, max_bytes=MIB) as out:
        for index in range(100):
            out.put_request(Request(index, label="x" * 1000))
            out.put_telemetry(TelemetrySample(float(index), 0))
            out.flush()
        assert out.full
        assert not out.write(part(many, 0, 5))
    assert stored(tmp_path / "t") < MIB
    assert validate_trace(tmp_path / "t").problems == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_bytes": 1000}, "max_bytes = 1,000: a trace takes at least 1,048,576"),
        ({"max_bytes": -1}, "max_bytes = -1"),
        ({"max_bytes": float("nan")}, "max_bytes = nan"),
        ({"max_bytes": float("inf")}, "max_bytes = inf"),
        ({"rotate": True}, "rotate=True needs max_bytes"),
        ({"sampling": {"rate": 1.5, "seed": 0}}, "sampling.rate: .* less than or equal to 1"),
        ({"sampling": {"rate": 0, "seed": 0}}, "sampling.rate: .* greater than 0"),
        ({"sampling": {"rate": float("nan"), "seed": 0}}, "sampling.rate"),
        ({"sampling": {"rate": 0.5}}, "sampling.seed: Field required"),
    ],
)
def test_limits_that_cannot_be_are_refused(
    tmp_path: Path, model: MoEModel, options: dict[str, Any], sentence: str
) -> None:
    TraceWriter(tmp_path / "t", model).close()
    with pytest.raises(TraceError, match=sentence):
        TraceWriter(tmp_path / "t", model, force=True, **options)
    assert open_trace(tmp_path / "t").manifest.complete, "what was there still is"


def test_what_the_sampler_leaves_out_is_not_dropped(
    tmp_path: Path, model: MoEModel, many: TokenRows
) -> None:
    now = [0.0]
    sampling = {"rate": 0.1, "seed": 7}
    out = TraceWriter(tmp_path / "t", model, sampling=sampling, clock=lambda: now[0])
    out.write(part(many, 0, 10))
    out.put_request(Request(3))
    out.leave_out(40)
    out.leave_out(60, requests=9)
    now[0] = 1.0
    out.tick()
    assert open_trace(tmp_path / "t").manifest.tokens_sampled_out == 100, "saved like drops"
    out.close()
    info = validate_trace(tmp_path / "t")
    assert (info.requests, info.requests_seen, info.tokens_sampled_out) == (1, 10, 100)
    assert info.sampling == sampling
    assert (info.dropped, info.problems) == ({}, [])
    text = trace_info_text(info)
    assert (
        "1 of 10 requests (each kept with probability 0.1, seed 7), 100 tokens left out"
        in " ".join(text.split())
    )


def test_counts_below_zero_are_refused(tmp_path: Path, model: MoEModel) -> None:
    with TraceWriter(tmp_path / "t", model) as out:
        for bad in (lambda: out.leave_out(-1), lambda: out.leave_out(0, -2)):
            with pytest.raises(TraceError, match="is no number of tokens or requests"):
                bad()
        with pytest.raises(TraceError, match="-3 is no number"):
            out.drop(-3, "behind")
    assert validate_trace(tmp_path / "t").problems == []


def test_a_trace_without_these_fields_still_opens(
    tmp_path: Path, model: MoEModel, many: TokenRows
) -> None:
    with TraceWriter(tmp_path / "t", model) as out:
        out.write(part(many, 0, 10))
    manifest = json.loads((tmp_path / "t" / "manifest.json").read_text())
    later = ("sampling", "rotated_tokens", "first_segment", "tokens_sampled_out", "margins")
    for name in (*later, "requests_sampled_out", "next_layer"):
        del manifest[name]
    (tmp_path / "t" / "manifest.json").write_text(json.dumps(manifest))
    info = validate_trace(tmp_path / "t")
    assert (info.tokens, info.sampling, info.rotated_tokens, info.problems) == (10, None, 0, [])
    assert "sampled" not in trace_info_text(info)


def test_a_closed_writer_takes_nothing(tmp_path: Path, model: MoEModel, many: TokenRows) -> None:
    out = TraceWriter(tmp_path / "t", model)
    out.close()
    for late in (
        lambda: out.write(part(many, 0, 1)),
        lambda: out.put_request(Request(0)),
        lambda: out.put_telemetry(TelemetrySample(0.0, 0)),
        lambda: out.drop(1, "late"),
        lambda: out.leave_out(1),
    ):
        with pytest.raises(TraceError, match="is closed"):
            late()
    assert describe_trace(open_trace(tmp_path / "t")).tokens == 0


@pytest.mark.parametrize(
    "request_",
    [Request(2**40), Request(0, label="\ud800"), Request(0, prompt_tokens="x"), Request(None)],  # type: ignore[arg-type]
)
def test_a_request_that_cannot_be_held_is_refused_where_it_is_put(
    tmp_path: Path, model: MoEModel, request_: Request
) -> None:
    with TraceWriter(tmp_path / "t", model) as out:
        with pytest.raises(TraceError, match=r"requests.arrows cannot hold") as caught:
            out.put_request(request_)
        assert "\n" not in str(caught.value)
        out.put_request(Request(1))
    assert [request.index for request in open_trace(tmp_path / "t").requests] == [1]
