"""Every function that runs while a model is recorded is made to fail: the model must not notice.

Which functions there are is found by running a recording under a profiler, so a new one is tried
without being named here. Those in GUARDS are left out: they are what catches.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import moeprof
from moeprof.capture import record
from moeprof.capture.drain import Drain
from moeprof.capture.failure import FailureLatch, logger
from moeprof.capture.recorder import RoutingRecorder
from moeprof.capture.recording import Recording
from moeprof.trace import Trace, TraceWriter, open_trace, validate_trace

from .conftest import assert_untouched
from .test_failures import fail

HOUSE = str(Path(moeprof.__file__).parent)
GENERATE = {"max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0}
PADDING = 4  # of `padded`, which counts where nothing but the shape of a forward is known
TRAFFIC = 17 + 3 * 3  # of `padded` under GENERATE
EVERYTHING = {"weights": True, "token_ids": True, "margins": True, "next_layer": True}
SECRET = "a secret prompt"
# A writer that failed leaves a prefix, and says so.
OF_A_PREFIX = ("its writer did not close it", "cut off before its writer closed it")

# What stands around everything else and catches for it, or takes hooks and threads away at the end.
GUARDS = (
    "CaptureSession.around_generate",
    "CaptureSession.around_forward",
    "CaptureSession.boundary",
    "CaptureSession.captured",
    "CaptureSession.fail",
    "CaptureSession.ignoring",
    "ContinuousBatches._around_compute_batch",
    "ContinuousBatches._batch",
    "ContinuousBatches._finish",
    "Drain._handle_waiting",
    "Drain.close",
    "FailureLatch.tripped",
    "PackedStep.tokens",
    "Sealer.shutdown",
    "StepHandler._split",
    "StepHandler.finish",
    "StepHandler.handle",
    "TelemetrySampler.stop",
    "TraceSink._guarded",
    "TraceSink.close",
    "TraceSink.tick",
    "_LayerListener._hear",
    "_LayerListener._hear_plainly",
    "_LayerListener.remove",
    "copies._leave",
    "graph_ops._begin",
    "graph_ops._end",
    "graph_ops._nothing",
    "graph_ops._route",
    "graph_ops.disconnect",
    "record._release",
)
# Where these fail, not even that there was a forward is known.
UNSEEN = (
    "CaptureSession.begin",
    "CaptureSession._begin",
    "CaptureSession.begin_packed",
    "CaptureSession.begin_traced",
    "continuous._is_warmup",
    "continuous._read_batch",
    "continuous._states",
)


class Watch:
    """Functions of moeprof that any thread calls while it is open."""

    def __init__(self) -> None:
        self._codes: dict[CodeType, None] = {}

    def __enter__(self) -> Watch:
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def _note(self, frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(HOUSE):
            self._codes[frame.f_code] = None

    def forget(self) -> None:
        self._codes.clear()

    def functions(self) -> dict[str, FunctionType]:
        """By name, but for those made while a recording begins, which differ every time."""
        functions = [f for f in gc.get_objects() if type(f) is FunctionType]
        users: dict[CodeType, list[FunctionType]] = {}
        for function in functions:
            if function.__code__ in self._codes:
                users.setdefault(function.__code__, []).append(function)
        named = {f"{f[0].__module__}.{c.co_qualname}": f for c, f in users.items()}
        alone = {name: f[0] for name, f in named.items() if len(f) == 1}
        left_out = (*GUARDS, *(name for name in alone if "<locals>" in name))
        return {name: alone[name] for name in sorted(alone) if not name.endswith(left_out)}


@contextmanager
def broken(function: FunctionType) -> Iterator[None]:
    """While open, `function` raises, whoever has imported it under whatever name."""
    original = function.__code__
    names = original.co_freevars
    source = (
        f"def make({', '.join(names)}):\n"
        "    def failing(*args, **kwargs):\n"
        f"        {', '.join(names) or None}\n"
        f"        raise RuntimeError({SECRET!r})\n"
        "    return failing\n"
    )
    made: dict[str, Any] = {}
    exec(source, made)
    function.__code__ = made["make"](*names).__code__
    try:
        yield
    finally:
        function.__code__ = original


class Bench:
    """Runs one way of using a model again and again, and says what is wrong with each recording."""

    def __init__(
        self,
        model: Any,
        run: Callable[[], Any],
        folder: Path,
        caplog: pytest.LogCaptureFixture,
        options: Mapping[str, Any],
        traffic: int,
        padding: int = 0,
    ) -> None:
        self.run = run
        self._model = model
        self._caplog = caplog
        self._options = options
        self._traffic = traffic
        self._most = traffic + padding
        self._paths = (folder / f"{number}.moetrace" for number in count())
        self.error: str | None = None  # of the last recording
        self._plain = run()
        path = next(self._paths)
        with record(model, path, **options) as recording:
            assert run() == self._plain
        assert (recording.tokens, recording.error) == (traffic, None)
        self._whole = open_trace(path)

    def functions(self) -> dict[str, FunctionType]:
        """What runs from the start of a recording until it has ended."""
        with Watch() as watch, record(self._model, next(self._paths), **self._options):
            watch.forget()
            self.run()
        return watch.functions()

    def complaints(
        self,
        fault: Callable[[], Any],
        *,
        unseen: bool = False,
        spoil: Callable[[Path], None] = lambda path: None,
    ) -> str:
        """What is wrong when `fault` is entered once recording has begun; empty if nothing is."""
        path = next(self._paths)
        self._caplog.clear()
        with fault_within(record(self._model, path, **self._options), fault) as recording:
            spoil(path)
            try:
                output = self.run()
            except Exception as error:
                output = repr(error)
        self.error = recording.error
        found = [
            "" if output == self._plain else f"output {str(output)[:200]}",
            self._of_recording(recording, unseen),
            self._of_log(recording),
            self._of_trace(path) if path.exists() else "",
            *(t.name for t in threading.enumerate() if t.name.startswith("moeprof-writer")),
        ]
        assert_untouched(self._model)
        return "; ".join(filter(None, found))

    def _of_recording(self, recording: Recording, unseen: bool) -> str:
        seen = recording.tokens + recording.dropped
        if not (0 if unseen else self._traffic) <= seen <= self._most:
            return f"{recording.tokens} recorded, {recording.dropped} dropped"
        whole = recording.tokens == self._traffic
        return "" if whole or recording.error else "lost without an error"

    def _of_log(self, recording: Recording) -> str:
        ours = [r for r in self._caplog.records if r.name == logger.name]
        errors = [r for r in ours if r.levelno >= logging.ERROR]
        if "secret" in " ".join([recording.error or "", *(r.getMessage() for r in ours)]):
            return "the secret is told"
        return f"{len(errors)} errors" if len(errors) != bool(recording.error) else ""

    def _of_trace(self, path: Path) -> str:
        """What is left must be a prefix that reads as such, of rows that are right."""
        trace = open_trace(path)
        problems = [p for p in validate_trace(path).problems if not p.endswith(OF_A_PREFIX)]
        if trace.tokens + sum(trace.dropped.values()) > self._most:
            problems.append(f"{trace.tokens} tokens and {trace.dropped} in the trace")
        return "; ".join(problems) or self._of_rows(trace)

    def _of_rows(self, trace: Trace) -> str:
        same = np.isin(self._whole.step, trace.step)
        for layer in trace.layers if trace.tokens else ():
            recorded = trace.recorded(layer)
            expected = self._whole.experts(layer)[same][recorded]
            if not np.array_equal(trace.experts(layer), expected):
                return f"other experts in layer {layer}"
        return ""


@contextmanager
def fault_within(recording: Any, fault: Callable[[], Any]) -> Iterator[Recording]:
    """The context `recording` with `fault` around its body and its end, not its beginning."""
    opened = recording.__enter__()
    with fault():
        try:
            yield opened
        finally:
            recording.__exit__(*sys.exc_info())


def failures(bench: Bench, functions: Mapping[str, FunctionType]) -> dict[str, str]:
    """What `bench` complains of, by the function that was broken."""
    found = {
        name: bench.complaints(partial(broken, function), unseen=name.endswith(UNSEEN))
        for name, function in functions.items()
    }
    return {name: complaint for name, complaint in found.items() if complaint}


@pytest.fixture
def bench(
    request: pytest.FixtureRequest,
    m3: Any,
    padded: tuple[Any, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> Bench:
    def run() -> Any:
        return m3.generate(padded[0], attention_mask=padded[1], **GENERATE).tolist()

    options = getattr(request, "param", EVERYTHING)
    return Bench(m3, run, tmp_path, caplog, options, TRAFFIC, PADDING)


@pytest.mark.parametrize("bench", [EVERYTHING, {}], ids=["everything", "lean"], indirect=True)
def test_any_function_may_fail(bench: Bench) -> None:
    functions = bench.functions()
    assert len(functions) > 130
    assert failures(bench, functions) == {}


def test_any_function_of_compiled_code_may_fail(
    build: Callable[..., Any],
    bench: Bench,
    padded: tuple[Any, Any],
    tmp_path: Path,
    torch: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build("mixtral", layers=2)

    @torch.no_grad()
    def run() -> Any:
        torch.compiler.reset()
        compiled = torch.compile(model, backend="eager")
        for _ in range(2):
            logits = compiled(padded[0], attention_mask=padded[1], use_cache=False).logits
        return logits.tolist()

    own = Bench(model, run, tmp_path / "compiled", caplog, {}, 2 * 17, 2 * PADDING)
    tried = bench.functions()
    functions = {name: f for name, f in own.functions().items() if name not in tried}
    assert any("begin_traced" in name for name in functions)
    assert failures(own, functions) == {}
    torch.compiler.reset()


def test_any_function_of_continuous_batching_may_fail(
    build: Callable[..., Any],
    bench: Bench,
    tmp_path: Path,
    torch: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("transformers.generation.continuous_batching")
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = build("mixtral", layers=2)
    settings = ContinuousBatchingConfig(
        page_size=32, num_blocks=32, max_batch_tokens=8, use_cuda_graph=False
    )
    greedy = GenerationConfig(max_new_tokens=3, eos_token_id=-1, pad_token_id=0, do_sample=False)

    def run() -> Any:
        outputs = model.generate_batch(
            [[5, 6, 7, 8, 9], [10, 11, 12]],
            generation_config=greedy,
            continuous_batching_config=settings,
            progress_bar=False,
        )
        return sorted(output.generated_tokens for output in outputs.values())

    own = Bench(model, run, tmp_path / "continuous", caplog, {}, 8 + 2 * 2)
    tried = bench.functions()
    functions = {name: f for name, f in own.functions().items() if name not in tried}
    assert any("begin_packed" in name for name in functions)
    assert failures(own, functions) == {}


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


def only_in(trace: str, real: Callable[..., Any], error: OSError) -> Callable[..., Any]:
    """`real`, which fails for files of that trace."""

    def failing(path: Any, *args: Any, **kwargs: Any) -> Any:
        if trace in str(path):
            raise error
        return real(path, *args, **kwargs)

    return failing


REASONS = [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EMFILE, errno.EROFS]


@pytest.mark.parametrize("reason", REASONS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["open", "replace"])
def test_the_system_may_refuse(bench: Bench, call: str, reason: int) -> None:
    refused = only_in(".moetrace", getattr(os, call), OSError(reason, os.strerror(reason)))
    assert bench.complaints(partial(patched, os, call, refused)) == ""
    assert bench.error is not None and os.strerror(reason) in bench.error


def nothing_more() -> Any:
    """No fault but what was done to the files."""
    return patched(threading, "stack_size", threading.stack_size)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("file", ["segments/000000.arrows", "requests.arrows", "manifest.json.tmp"])
def test_the_disk_may_be_full(bench: Bench, file: str) -> None:
    def fill(path: Path) -> None:
        (path / file).unlink(missing_ok=True)
        (path / file).symlink_to("/dev/full")

    found = bench.complaints(nothing_more, spoil=fill)
    assert found in ("", f"{file}: is missing")  # a device is no file
    assert bench.error is not None and "No space left" in bench.error


@pytest.mark.parametrize("part", ["", "segments"])
def test_the_folder_may_be_deleted(bench: Bench, part: str) -> None:
    assert bench.complaints(nothing_more, spoil=lambda path: shutil.rmtree(path / part)) == ""
    assert bench.error is not None


def clocks() -> dict[str, Callable[[], float]]:
    """Clocks that no machine should have."""
    ticks = count()
    return {
        "runs back": lambda: 1e9 - next(ticks) * 60.0,
        "jumps": lambda: 1e9 * (next(ticks) % 2),
        "stands": lambda: 1.0,
        "fails": fail(RuntimeError(SECRET)),
    }


@pytest.mark.parametrize("clock", clocks())
def test_clocks_may_be_wrong(
    clock: str,
    m3: Any,
    padded: tuple[Any, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    torch: Any,
) -> None:
    """The engine's own clock is right: only the modules of moeprof are given another."""

    def run() -> Any:
        with torch.no_grad():
            return m3(padded[0], attention_mask=padded[1]).logits.tolist()

    bench = Bench(m3, run, tmp_path, caplog, {}, 17, PADDING)
    wrong = clocks()[clock]
    ours = [m for name, m in sys.modules.items() if name.startswith("moeprof.")]
    users = [module for module in ours if getattr(module, "time", None) is time]
    assert len(users) >= 3

    @contextmanager
    def fault() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for module in users:
                fake = SimpleNamespace(time=wrong, monotonic=wrong, perf_counter=wrong)
                patch.setattr(module, "time", fake)
            yield

    assert bench.complaints(fault) == ""
    assert bool(bench.error) == (clock == "fails")


def test_the_writers_clock_may_be_wrong(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    make = TraceWriter.__init__
    for clock in clocks().values():
        wrong = iter([1.0, 1.0])  # while the trace is begun

        def tell(wrong: Iterator[float] = wrong, then: Any = clock) -> float:
            return next(wrong, None) or then()

        monkeypatch.setattr(TraceWriter, "__init__", partial_method(make, clock=tell))
        assert bench.complaints(nothing_more) == ""
    assert bench.error is not None  # the last one fails


def partial_method(method: Callable[..., None], **given: Any) -> Callable[..., None]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        method(self, *args, **kwargs, **given)

    return init


class FailingNvml:
    """One GPU, of which nothing can be had after the first `good` questions."""

    def __init__(self, good: int) -> None:
        self._left = good

    def __getattr__(self, name: str) -> Any:
        if name in ("nvmlInit", "nvmlShutdown"):
            return lambda: None
        if name == "nvmlDeviceGetCount":
            return lambda: 1
        if name == "nvmlDeviceGetHandleByIndex":
            return lambda index: index
        self._left -= 1
        if self._left < 0:
            raise AttributeError(SECRET)  # an old driver's library lacks the function
        return fail(RuntimeError(SECRET))


@pytest.mark.parametrize("good", [0, 3])
def test_telemetry_may_fail(bench: Bench, good: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import moeprof.capture.telemetry as telemetry

    asked = FailingNvml(good)
    monkeypatch.setattr(telemetry, "_import_nvml", lambda: asked)
    assert bench.complaints(nothing_more) == "" and asked._left < 0


def test_a_log_handler_of_the_users_may_fail(bench: Bench) -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError(SECRET)

    handler = Failing()
    logger.addHandler(handler)
    try:
        broken_write = patched(RoutingRecorder, "write", fail(RuntimeError(SECRET)))
        assert bench.complaints(lambda: broken_write) in ("", "0 errors")  # caplog may come second
    finally:
        logger.removeHandler(handler)
    assert bench.error is not None


def test_of_many_failures_at_once_one_is_told(caplog: pytest.LogCaptureFixture) -> None:
    latch, together = FailureLatch(), threading.Barrier(8)

    def trip() -> None:
        together.wait()
        latch.trip(RuntimeError(SECRET), "testing")

    threads = [threading.Thread(target=trip) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caplog.records) == 1 and "secret" not in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_exception_of_the_users_comes_through(
    error: type[BaseException], m3: Any, padded: tuple[Any, Any], tmp_path: Path, torch: Any
) -> None:
    """From a hook of theirs, in the middle of a forward: the same object, and recording goes on."""
    raised = error("theirs")

    def hook(*args: Any) -> None:
        raise raised

    with torch.no_grad(), record(m3, tmp_path / "t.moetrace") as recording:
        handle = m3.model.layers[2].register_forward_hook(hook)
        with pytest.raises(error) as caught:
            m3.generate(padded[0], attention_mask=padded[1], **GENERATE)
        handle.remove()
        m3.generate(padded[0], attention_mask=padded[1], **GENERATE)
    assert caught.value is raised and recording.error is None
    assert (recording.tokens, recording.dropped) == (TRAFFIC, 17)


def test_memory_is_bounded_while_the_writer_stalls(
    build: Callable[..., Any], tmp_path: Path, torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of steps that nobody takes so few wait that both bytes and items are bounded."""
    from transformers import DynamicCache

    from moeprof.capture.transformers.traffic.handler import StepHandler

    model, limit, go, pending = build("mixtral", layers=2), 64_000, threading.Event(), []
    handle, offer = StepHandler.handle, Drain.offer

    def stalled(self: StepHandler, items: Any) -> None:
        go.wait()
        handle(self, items)

    def watched(self: Drain, *args: Any, **kwargs: Any) -> bool:
        accepted = offer(self, *args, **kwargs)
        pending.append((self.pending_bytes, len(self._queue)))
        return accepted

    monkeypatch.setattr(StepHandler, "handle", stalled)
    monkeypatch.setattr(Drain, "offer", watched)
    token, cache = torch.tensor([[5]]), DynamicCache(config=model.config)
    path = tmp_path / "t.moetrace"
    with torch.no_grad(), record(model, path, max_pending_bytes=limit) as recording:
        try:
            model(token, past_key_values=cache)
            for _ in range(1200):
                model(token, past_key_values=cache)
                cache.crop(-1)
        finally:
            go.set()
    assert max(nbytes for nbytes, _ in pending) <= limit
    assert len(pending) > 1200 and max(items for _, items in pending) <= limit / 512
    assert recording.error is None and recording.dropped > 1000
    assert recording.tokens + recording.dropped == 1201


@pytest.mark.parametrize("broken_part", ["capturing", "prepare_capture"])
def test_a_capture_into_a_cuda_graph_may_fail(
    broken_part: str, m3: Any, padded: tuple[Any, Any], tmp_path: Path, torch: Any
) -> None:
    with torch.no_grad():
        plain = m3(padded[0]).logits
        with (
            record(m3, tmp_path / "t.moetrace") as recording,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(RoutingRecorder, "capturing", True)
            patch.setattr(RoutingRecorder, "prepare_capture", fail(RuntimeError(SECRET)))
            if broken_part == "capturing":
                patch.setattr(RoutingRecorder, "capturing", property(fail(RuntimeError(SECRET))))
            assert torch.equal(m3(padded[0]).logits, plain)
    assert recording.error is not None and "secret" not in recording.error
    # A forward that is captured is none: nothing was computed.
    assert recording.dropped == (21 if broken_part == "capturing" else 0)
