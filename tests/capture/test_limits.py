"""What bounds a recording: a size, a time, a part of the requests. Nothing goes uncounted."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.analysis.sampling import sampling_error
from moeprof.capture import record
from moeprof.capture.failure import FailureLatch
from moeprof.capture.limits import Limits
from moeprof.capture.sampling import RequestSampler
from moeprof.capture.sink import TraceSink
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import Request, TokenRows, TraceWriter, open_trace, validate_trace
from moeprof.trace.writer import SIZE_LIMIT

from .test_failures import GENERATE, TRAFFIC, wait_until

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.moetrace"


# The choice of requests


def test_the_mix_is_splitmix64() -> None:
    from moeprof.capture.sampling import _GOLDEN, _mix

    state = np.arange(1, 4, dtype=np.uint64) * _GOLDEN  # seed 0, as published
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert _mix(state).tolist() == published


@given(st.floats(0.05, 0.95), st.integers(0, 2**63 - 1))
def test_the_rate_is_kept_whatever_the_seed(rate: float, seed: int) -> None:
    kept = RequestSampler(rate, seed).keeps(np.arange(20_000))
    assert abs(kept.mean() - rate) < 6 * np.sqrt(rate * (1 - rate) / 20_000)


@given(st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_a_choice_depends_on_number_and_seed_alone(seed: int, start: int) -> None:
    sampler = RequestSampler(0.5, seed)
    whole = sampler.keeps(np.arange(2000, dtype=np.int32))
    assert np.array_equal(sampler.keeps(np.arange(start, 2000)), whole[start:])
    other = RequestSampler(0.5, seed ^ 1).keeps(np.arange(2000))
    assert 0.4 < (other == whole).mean() < 0.6  # seeds side by side have nothing in common
    assert 0.4 < (whole[1:] == whole[:-1]).mean() < 0.6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sample_requests": 0.0}, "sample_requests"),
        ({"sample_requests": 1.1}, "sample_requests"),
        ({"sample_requests": float("nan")}, "sample_requests"),
        ({"duration_s": 0}, "duration_s"),
        ({"duration_s": float("inf")}, "duration_s"),
        ({"rotate": True}, "max_bytes"),
        ({"max_bytes": 1000}, "at least 1,048,576"),
        ({"seed": -1}, "seed"),
    ],
)
def test_values_that_cannot_be_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Limits(**values)


# The sink, without an engine


def rows_of(model: MoEModel, step: int, request: np.ndarray) -> TokenRows:
    n = len(request)
    ids = (np.arange(n)[:, None, None] + np.arange(3)[None, None, :]) % model.experts
    shape = (n, len(model.moe_layers), 3)
    return TokenRows(
        step=np.full(n, step, np.int64),
        request=request.astype(np.int32),
        position=np.full(n, step, np.int32),
        phase=np.ones(n, np.int8),
        experts=np.broadcast_to(ids, shape).astype(np.uint8),
    )


def test_the_sink_keeps_whole_requests_and_counts_the_rest(model: MoEModel, path: Path) -> None:
    limits = Limits(sample_requests=0.3, seed=7)
    writer = TraceWriter(path, model, sampling=limits.sampling)
    sink = TraceSink(writer, FailureLatch(), limits.sampler)
    for step in range(20):
        sink.put_requests([Request(index) for index in range(10 * step, 10 * step + 10)])
        sink.write(rows_of(model, step, np.arange(max(0, 10 * step - 10), 10 * step + 10)))
    sink.close()
    trace = open_trace(path)
    kept = np.flatnonzero(RequestSampler(0.3, 7).keeps(np.arange(200)))
    assert sorted(set(trace.request)) == [request.index for request in trace.requests] == [*kept]
    manifest = trace.manifest
    assert manifest.requests_sampled_out == 200 - len(kept)
    assert trace.tokens + manifest.tokens_sampled_out == 10 + 19 * 20
    assert sink.counts.sampled_out == manifest.tokens_sampled_out and not trace.dropped
    assert not validate_trace(path).problems
    assert 0 < sampling_error(trace).mean_share_error < 1


def test_sampled_load_is_unbiased(model: MoEModel, tmp_path: Path) -> None:
    """The mean of 40 seeds lies where all requests lie; each within its stated error, mostly."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, 300)
    request = np.repeat(np.arange(300), lengths)
    whole = rows_of(model, 0, request)
    shares, within = [], 0
    for seed in range(40):
        limits = Limits(sample_requests=0.3, seed=seed)
        writer = TraceWriter(tmp_path / str(seed), model, sampling=limits.sampling)
        sink = TraceSink(writer, FailureLatch(), limits.sampler)
        sink.write(whole)
        sink.close()
        error = sampling_error(open_trace(tmp_path / str(seed)))
        shares.append(error.estimated_tokens)
        within += abs(error.estimated_tokens - len(request)) < 2 * error.tokens_error * len(request)
    assert abs(np.mean(shares) / len(request) - 1) < 0.03
    assert within >= 34  # 95 % of 40 would be 38


# The whole way


def test_sampling_a_model_leaves_whole_requests_out(
    m3: Any, padded: tuple[Any, Any], path: Path, torch: Any
) -> None:
    ids, mask = padded
    plain = m3.generate(ids, attention_mask=mask, **GENERATE)
    with record(m3, path, sample_requests=0.5, seed=1, labels="x") as recording:
        for _ in range(8):
            assert torch.equal(plain, m3.generate(ids, attention_mask=mask, **GENERATE))
    trace = open_trace(path)
    kept = np.flatnonzero(RequestSampler(0.5, 1).keeps(np.arange(24)))
    assert sorted(set(trace.request)) == [*kept] == [r.index for r in trace.requests]
    assert recording.tokens == trace.tokens and recording.dropped == 0
    assert recording.tokens + recording.sampled_out == 8 * TRAFFIC
    assert trace.manifest.sampling is not None and trace.manifest.sampling.rate == 0.5
    assert trace.manifest.requests_sampled_out == 24 - len(kept)
    assert not validate_trace(path).problems


def test_a_rate_of_one_is_no_sampling(m3: Any, padded: tuple[Any, Any], path: Path) -> None:
    with record(m3, path, sample_requests=1.0) as recording:
        m3.generate(padded[0], attention_mask=padded[1], **GENERATE)
    assert recording.tokens == TRAFFIC and open_trace(path).manifest.sampling is None


def fill(m3: Any, torch: Any, recording: Any, tokens: int) -> int:
    """Run `tokens` tokens and more through `m3`, in prompts; returns how many."""
    ids = torch.arange(3, 53).repeat(8, 2)
    done = 0
    with torch.no_grad():
        while done < tokens:
            m3(ids, use_cache=False)
            done += ids.numel()
    wait_until(lambda: recording.tokens + recording.dropped == done)
    return done


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_at_the_size_limit_recording_stops_and_the_model_goes_on(
    m3: Any, path: Path, torch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with record(m3, path, max_bytes=MIB) as recording:
        seen = fill(m3, torch, recording, 40_000)
        assert size_of(path) <= MIB
    trace = open_trace(path)
    assert 0 < recording.tokens == trace.tokens < seen
    assert trace.dropped == {SIZE_LIMIT: seen - trace.tokens} == recording.drop_reasons
    assert caplog.text.count("size limit") == 1
    assert trace.manifest.complete and not validate_trace(path).problems


def test_rotation_keeps_the_newest(m3: Any, path: Path, torch: Any) -> None:
    with record(m3, path, max_bytes=MIB, rotate=True) as recording:
        seen = fill(m3, torch, recording, 40_000)
        assert size_of(path) <= MIB
    trace = open_trace(path)
    assert recording.tokens == trace.tokens and recording.dropped == 0
    assert recording.tokens + recording.rotated == seen and recording.rotated > 0
    assert trace.request.max() == seen // 100 - 1 and trace.request.min() > 0
    assert not validate_trace(path).problems


def test_a_limit_that_holds_nothing_is_refused(m3: Any, path: Path) -> None:
    with pytest.raises(InputError, match="max_bytes"), record(m3, path, max_bytes=1000):
        pass


def test_after_its_time_the_trace_is_closed_and_nothing_is_counted(
    m3: Any, padded: tuple[Any, Any], path: Path, torch: Any
) -> None:
    ids, mask = padded
    with record(m3, path, duration_s=0.3) as recording:
        plain = m3.generate(ids, attention_mask=mask, **GENERATE)
        wait_until(lambda: recording.ended)
        trace = open_trace(path)
        assert trace.manifest.complete and trace.tokens == TRAFFIC
        for _ in range(3):
            assert torch.equal(plain, m3.generate(ids, attention_mask=mask, **GENERATE))
    assert (recording.tokens, recording.dropped, recording.error) == (TRAFFIC, 0, None)
    assert open_trace(path).tokens == TRAFFIC and not validate_trace(path).problems


def test_what_was_queued_before_the_end_is_recorded(
    m3: Any, padded: tuple[Any, Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moeprof.capture import pipeline

    ends: list[Callable[[], None]] = []
    monkeypatch.setattr(
        pipeline, "_end_after", lambda stack, seconds, drain: ends.append(drain.offer)
    )
    with record(m3, path, duration_s=1) as recording:
        m3.generate(padded[0], attention_mask=padded[1], **GENERATE)
        ends[0](pipeline.END)  # type: ignore[call-arg]
        m3.generate(padded[0], attention_mask=padded[1], **GENERATE)
    assert recording.ended and open_trace(path).tokens == recording.tokens == TRAFFIC
    assert recording.dropped == 0


def test_a_forked_process_leaves_the_trace_alone(
    m3: Any, padded: tuple[Any, Any], path: Path
) -> None:
    context = record(m3, path)
    recording = context.__enter__()
    m3.generate(padded[0], attention_mask=padded[1], **GENERATE)
    wait_until(lambda: recording.tokens == TRAFFIC)
    child = os.fork()
    if child == 0:
        try:
            context.__exit__(None, None, None)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert not open_trace(path).manifest.complete
    m3.generate(padded[0], attention_mask=padded[1], **GENERATE)
    context.__exit__(None, None, None)
    assert open_trace(path).tokens == 2 * TRAFFIC and not validate_trace(path).problems


def test_the_end_is_said_at_info(m3: Any, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "moeprof"), record(m3, path, duration_s=0.05) as recording:
        wait_until(lambda: recording.ended)
    assert "ends after 0.05 s" in caplog.text
