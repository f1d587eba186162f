"""Whatever fails in recording, the model goes on, and every token seen is accounted for."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture import record
from moeprof.capture.recorder import RoutingRecorder, Written
from moeprof.capture.transformers.requests.tracker import RequestTracker
from moeprof.capture.transformers.traffic.handler import StepHandler
from moeprof.errors import InputError
from moeprof.trace import TraceWriter, open_trace, validate_trace
from moeprof.trace.streams import StreamWriter

from .conftest import Oracle, assert_untouched

GENERATE = {"max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 0}
TRAFFIC = 17 + 4 * 3  # of `padded` under GENERATE
ROUNDS = 8  # of generate; all of it takes 32 kB, most of them metadata


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.moetrace"


def fail(error: Exception) -> Callable[..., Any]:
    def failing(*args: Any, **kwargs: Any) -> Any:
        raise error

    return failing


BREAKS: dict[str, tuple[Any, str, Exception]] = {
    "router hook": (RoutingRecorder, "write", RuntimeError("a secret prompt")),
    "device memory": (RoutingRecorder, "begin", RuntimeError("out of memory")),
    "copy-out": (RoutingRecorder, "end", RuntimeError("no pinned memory")),
    "requests": (RequestTracker, "advance", TypeError("a secret prompt")),
    "interpretation": (StepHandler, "_introduce", ValueError("a secret prompt")),
    "rows refused": (TraceWriter, "write", ValueError("a secret prompt")),
    "disk full": (StreamWriter, "append", OSError(errno.ENOSPC, "No space left on device")),
    "not permitted": (StreamWriter, "append", PermissionError(errno.EACCES, "Permission denied")),
    "close": (TraceWriter, "close", OSError(errno.EIO, "Input/output error")),
}


@pytest.mark.parametrize("where", BREAKS)
def test_a_failure_leaves_the_model_alone_and_is_counted(
    where: str,
    m3: Any,
    padded: tuple[Any, Any],
    path: Path,
    torch: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids, mask = padded
    plain = m3.generate(ids, attention_mask=mask, **GENERATE)
    target, method, error = BREAKS[where]
    with caplog.at_level(logging.WARNING, "moeprof"), record(m3, path) as recording:
        monkeypatch.setattr(target, method, fail(error))
        watched = m3.generate(ids, attention_mask=mask, **GENERATE)
    assert torch.equal(plain, watched)
    assert recording.error is not None
    assert [r.levelname for r in caplog.records] == ["ERROR"]
    assert "secret" not in caplog.text + recording.error
    if where != "interpretation":  # without it padding cannot be told
        assert recording.tokens + recording.dropped == TRAFFIC
    else:
        assert recording.dropped >= TRAFFIC - 17


def test_what_was_written_before_the_disk_filled_stays(
    m3: Any, padded: tuple[Any, Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, mask = padded
    with record(m3, path) as recording:
        m3.generate(ids, attention_mask=mask, **GENERATE)
        wait_until(lambda: recording.tokens == TRAFFIC)
        wait_until(lambda: (path / "segments" / "000000.arrows").exists())
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(StreamWriter, "append", fail(full))
        m3.generate(ids, attention_mask=mask, **GENERATE)
    assert recording.error is not None and "No space left" in recording.error
    assert recording.tokens == open_trace(path).tokens == TRAFFIC
    assert (recording.prefill_tokens, recording.decode_tokens) == (17, 12)
    assert recording.tokens + recording.dropped == 2 * TRAFFIC


@pytest.mark.parametrize("limit", [29_000, 400, 1])
def test_a_stalled_writer_drops_whole_steps_and_bounds_memory(
    limit: int,
    m3: Any,
    padded: tuple[Any, Any],
    path: Path,
    torch: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids, mask = padded
    plain = m3.generate(ids, attention_mask=mask, **GENERATE)
    go = threading.Event()
    handle = StepHandler.handle
    waiting: list[int] = []

    def stalled(self: StepHandler, items: Any) -> None:
        go.wait()
        handle(self, items)

    monkeypatch.setattr(StepHandler, "handle", stalled)
    offers = watch_pending(monkeypatch, waiting)
    with Oracle(m3) as oracle, record(m3, path, max_pending_bytes=limit) as recording:
        for _ in range(ROUNDS):
            watched = m3.generate(ids, attention_mask=mask, **GENERATE)
            assert torch.equal(plain, watched)
        assert recording.tokens == 0
        go.set()
    trace = open_trace(path)
    assert recording.error is None and offers and max(waiting) <= limit
    assert recording.dropped > 0 and sum(trace.dropped.values()) == recording.dropped
    assert trace.tokens == recording.tokens
    if limit == 29_000:  # every step's metadata fits: the count is exact, without padding
        assert recording.tokens > 0 and recording.tokens + recording.dropped == ROUNDS * TRAFFIC
    else:
        assert ROUNDS * TRAFFIC <= recording.tokens + recording.dropped <= ROUNDS * (3 * 7 + 12)
    for step in np.unique(trace.step):  # whole steps or none
        live = padded[1] if step % 5 == 0 else np.ones((3, 1))
        expected = oracle.calls[1][step][1][np.asarray(live).reshape(-1) == 1]
        assert np.array_equal(trace.experts(1)[trace.step == step], expected)


def watch_pending(monkeypatch: pytest.MonkeyPatch, seen: list[int]) -> bool:
    from moeprof.capture.drain import Drain

    offer = Drain.offer

    def watched(self: Drain, item: Any, nbytes: int = 0, *, reserve: int = 0) -> bool:
        accepted = offer(self, item, nbytes, reserve=reserve)
        seen.append(self.pending_bytes)
        return accepted

    monkeypatch.setattr(Drain, "offer", watched)
    return True


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_body_propagates_and_the_trace_is_whole(
    error: type[BaseException], m3: Any, padded: tuple[Any, Any], path: Path
) -> None:
    with pytest.raises(error), record(m3, path):
        m3.generate(padded[0], attention_mask=padded[1], **GENERATE)
        raise error
    assert_untouched(m3)
    assert not any(t.name.startswith("moeprof") for t in threading.enumerate())
    trace = open_trace(path)
    assert trace.tokens == TRAFFIC and trace.manifest.complete
    assert not validate_trace(path).problems


def test_a_forward_that_raises_is_dropped_and_the_next_is_recorded(
    m3: Any, padded: tuple[Any, Any], path: Path, torch: Any
) -> None:
    ids, mask = padded

    def out_of_memory(*args: Any) -> None:
        raise torch.OutOfMemoryError("of the model")

    with record(m3, path) as recording, torch.no_grad():
        bomb = m3.model.layers[2].register_forward_hook(out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            m3(ids, attention_mask=mask)
        bomb.remove()
        m3(ids, attention_mask=mask)
    assert (recording.tokens, recording.dropped, recording.error) == (17, 17, None)
    assert recording.drop_reasons == {"the forward raised": 17}
    assert np.unique(open_trace(path).step).tolist() == [1]


def test_generate_that_raises_is_forgotten(
    m3: Any, padded: tuple[Any, Any], path: Path, torch: Any
) -> None:
    def stop(*args: Any) -> Any:
        raise KeyboardInterrupt

    with record(m3, path) as recording:
        with pytest.raises(KeyboardInterrupt):
            m3.generate(padded[0], attention_mask=padded[1], logits_processor=[stop], **GENERATE)
        m3.generate(padded[0], attention_mask=padded[1], **GENERATE)
    trace = open_trace(path)
    assert recording.tokens == 17 + TRAFFIC and len(trace.requests) == 6
    assert trace.position[trace.request == 4].tolist() == list(range(8))


def test_a_layer_that_saw_other_rows_is_null_and_not_zero(
    m3: Any, padded: tuple[Any, Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = m3.model.layers[2].mlp.gate
    with record(m3, path) as recording:
        write = RoutingRecorder.write

        def shorter(self: Any, slot: int, written: Written) -> None:
            fewer = Written(*[None if field is None else field[1:] for field in written])
            write(self, slot, fewer if slot == 1 else written)

        monkeypatch.setattr(RoutingRecorder, "write", shorter)
        m3(padded[0])
    trace = open_trace(path)
    assert router is not None and recording.dropped == 0
    assert [bool(trace.recorded(layer).all()) for layer in trace.layers] == [True, False, True]
    assert not trace.recorded(2).any() and len(trace.experts(2)) == 0


def test_steps_that_no_router_speaks_in_are_dropped(
    m3: Any,
    padded: tuple[Any, Any],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with record(m3, path) as recording:
        monkeypatch.setattr(RoutingRecorder, "write", lambda *args: None)
        monkeypatch.setattr(RoutingRecorder, "write_step", lambda *args: True)
        m3(padded[0])
        m3(padded[0])
    assert (recording.tokens, recording.dropped) == (0, 42)
    assert "no router" in caplog.text and len(caplog.records) == 1


def test_routing_outside_of_the_recorded_model_is_counted(
    m3: Any, padded: tuple[Any, Any], path: Path
) -> None:
    with record(m3, path) as recording:
        m3.model(padded[0])  # a wrapper's generate may call the inner model like this
    assert (recording.tokens, recording.dropped) == (0, 21)


def test_packed_sequences_are_dropped(m3: Any, path: Path, torch: Any) -> None:
    ids = torch.arange(3, 13)[None]
    packed = {"cu_seq_lens_q": torch.tensor([0, 5, 10])}
    with record(m3, path) as recording:
        m3(ids, **packed)
    assert (recording.tokens, recording.dropped, recording.error) == (0, 10, None)


def test_what_cannot_be_recorded_is_refused_before_anything_changes(
    m3: Any, build: Callable[[str], Any], path: Path
) -> None:
    with pytest.raises(InputError, match="no MoE layers"), record(build("llama"), path):
        pass
    with pytest.raises(InputError, match="takes a transformers model"), record([], path):
        pass
    none = record(m3, path, max_pending_bytes=0)
    with pytest.raises(InputError, match="max_pending_bytes"), none:
        pass
    assert not path.exists()
    second = record(m3, path.with_name("second"))
    with record(m3, path), pytest.raises(InputError, match="being recorded already"), second:
        pass
    with pytest.raises(InputError, match="exists"), record(m3, path):
        pass
    with record(m3, path, force=True) as recording:
        pass
    assert (recording.tokens, recording.dropped, recording.error) == (0, 0, None)


def test_a_generate_of_the_users_own_comes_back(
    build: Callable[[str], Any], padded: tuple[Any, Any], path: Path
) -> None:
    model = build("mixtral")
    kept = model.generate

    def theirs(*args: Any, **kwargs: Any) -> Any:
        return kept(*args, **kwargs)

    model.generate = theirs
    with record(model, path) as recording:
        model.generate(padded[0], attention_mask=padded[1], **GENERATE)
    assert model.generate is theirs and recording.tokens == TRAFFIC
    del model.generate


def wait_until(condition: Callable[[], bool]) -> None:
    """Until the writer thread is there; a test that would wait for ever fails."""
    done = threading.Event()
    for _ in range(1000):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("the writer thread did not get there in 10 s")


def test_two_threads_at_a_time_end_the_recording(
    build: Callable[[str], Any], tmp_path: Path, torch: Any
) -> None:

    model = build("mixtral")
    entered, release = threading.Event(), threading.Event()

    def wait_inside(module: Any, args: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            release.wait(10)

    ids = torch.arange(5, 9)[None]
    with record(model, tmp_path / "t.moetrace") as recording:
        handle = model.model.layers[0].register_forward_pre_hook(wait_inside)
        thread = threading.Thread(target=lambda: model(input_ids=ids))
        thread.start()
        assert entered.wait(10)
        model(input_ids=ids)
        release.set()
        thread.join()
        handle.remove()
    assert recording.error is not None
    assert "two threads" in recording.error
    assert (recording.tokens, recording.dropped) == (0, 8)


def test_threads_may_take_turns(build: Callable[[str], Any], tmp_path: Path, torch: Any) -> None:

    model = build("mixtral")
    ids = torch.arange(5, 9)[None]
    with record(model, tmp_path / "t.moetrace") as recording:
        for _ in range(2):
            thread = threading.Thread(target=lambda: model(input_ids=ids))
            thread.start()
            thread.join()
    assert (recording.error, recording.tokens) == (None, 8)


@pytest.mark.parametrize("labels", [5, [1, 2], ["a", "\ud800"]])
def test_labels_that_are_no_text_are_refused_before_anything(
    build: Callable[[str], Any], tmp_path: Path, labels: Any
) -> None:
    with (
        pytest.raises(InputError, match="label"),
        record(build("mixtral"), tmp_path / "t.moetrace", labels=labels),
    ):
        pass
    assert not (tmp_path / "t.moetrace").exists()


def test_two_recordings_into_one_trace_are_refused(
    build: Callable[[str], Any], tmp_path: Path
) -> None:
    path = tmp_path / "t.moetrace"
    with record(build("mixtral"), path) as first:
        with (
            pytest.raises(InputError, match="is being recorded into already"),
            record(build("qwen3"), path, force=True),
        ):
            pass
        first.label = "still on"
        with pytest.raises(InputError, match="a label must be a text"):
            first.label = 3  # type: ignore[assignment]
