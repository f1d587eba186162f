"""Every function that runs while a model is recorded is made to fail: the model must not notice.

Which functions there are is found by running a recording under a profiler, so a new one is tried
without being named here. Those in GUARDS are left out: they are what catches.
"""

from __future__ import annotations

import errno
import gc
import importlib
import inspect
import logging
import os
import shutil
import sys
import threading
import time
import tracemalloc
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
from moeprof.capture.layout import Layout
from moeprof.capture.recorder import RoutingRecorder, Written
from moeprof.capture.recording import Recording
from moeprof.trace import Trace, TraceWriter, open_trace, validate_trace

from .conftest import assert_untouched

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
            output = self.run()
        found = [
            "" if output == self._plain else "other output",
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
    m3: Any, padded: tuple[Any, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Bench:
    def run() -> Any:
        return m3.generate(padded[0], attention_mask=padded[1], **GENERATE).tolist()

    return Bench(m3, run, tmp_path, caplog, EVERYTHING, TRAFFIC, PADDING)


def test_any_function_may_fail(bench: Bench) -> None:
    functions = bench.functions()
    assert len(functions) > 150
    assert failures(bench, functions) == {}


def test_any_function_of_compiled_code_may_fail(
    build: Callable[[str], Any],
    bench: Bench,
    padded: tuple[Any, Any],
    tmp_path: Path,
    torch: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build("mixtral")

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
    build: Callable[[str], Any],
    bench: Bench,
    tmp_path: Path,
    torch: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("transformers.generation.continuous_batching")
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = build("mixtral")
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
