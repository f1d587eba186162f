"""What every engine's capture stands on: queue, writer thread, trace, telemetry, wired once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from moeprof.capture.drain import Drain
from moeprof.capture.failure import FailureLatch, logger
from moeprof.capture.limits import Limits
from moeprof.capture.recording import Recording
from moeprof.capture.sink import TraceSink
from moeprof.capture.telemetry import TelemetrySampler
from moeprof.errors import InputError
from moeprof.trace import TelemetrySample, TraceWriter

MAX_PENDING_BYTES = 256 << 20
END = object()  # in the queue: what comes behind it is outside of the recording

_being_written: set[Path] = set()


class Handler(Protocol):
    """Turns an engine's items into rows for the sink, in the writer thread. Never raises."""

    def handle(self, items: Sequence[Any]) -> None:
        """Items that the engine's hooks offered, in order."""

    def finish(self) -> None:
        """Nothing more will come."""


@dataclass(frozen=True)
class Pipeline:
    """An open recording: hooks offer items to `drain`, the user holds `recording`."""

    drain: Drain
    latch: FailureLatch
    recording: Recording
    clock_base: float  # Unix time that the trace counts from


@contextmanager
def open_pipeline(
    open_writer: Callable[[], TraceWriter],
    path: str | Path,
    make_handler: Callable[[TraceSink, FailureLatch], Handler],
    *,
    labels: str | Sequence[str | None] | None,
    max_pending_bytes: int,
    limits: Limits,
    telemetry: bool = True,
) -> Iterator[Pipeline]:
    """Everything between an engine's hooks and the trace at `path`, until the context ends.

    Without `telemetry` the GPUs of this machine are not sampled: the model runs on another.
    Raises InputError if `path` is being recorded into already, or what `open_writer` raises.
    """
    with ExitStack() as stack:
        _claim(stack, Path(path).absolute())
        writer = open_writer()
        latch = FailureLatch()
        sink = TraceSink(writer, latch, limits.sampler)
        at_end = partial(_at_end, stack, latch)
        at_end(sink.close)
        handler = make_handler(sink, latch)
        at_end(handler.finish)
        drain = Drain(_dispatch(sink, handler, latch), sink.tick, max_pending_bytes)
        at_end(drain.close)
        if telemetry:
            sampler = TelemetrySampler(drain.offer, writer.clock_base)
            at_end(sampler.stop)
            sampler.start()
        if limits.duration_s is not None:
            _end_after(stack, limits.duration_s, drain)
        recording = Recording(writer.path, sink.counts, latch, labels)
        yield Pipeline(drain, latch, recording, writer.clock_base)


def _at_end(stack: ExitStack, latch: FailureLatch, action: Callable[[], object]) -> None:
    """Let `stack` run `action`, whose failure is ours alone.

    Not in a process forked meanwhile: the trace is not its own.
    """
    owner = os.getpid()

    def run() -> None:
        if os.getpid() == owner:
            try:
                action()
            except Exception as error:
                latch.trip(error, "ending the recording")

    stack.callback(run)


def _end_after(stack: ExitStack, seconds: float, drain: Drain) -> None:
    """The recording's end, in its place among what the hooks offer."""

    def end() -> None:
        drain.offer(END)
        logger.info("the recording ends after %g s, as asked; the model goes on", seconds)

    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), end)
    timer.daemon = True
    timer.start()
    stack.callback(timer.cancel)


def _claim(stack: ExitStack, path: Path) -> None:
    """Two recordings into one trace would delete each other's rows, `force` or not."""
    if path in _being_written:
        raise InputError(f"{path} is being recorded into already")
    _being_written.add(path)
    stack.callback(_being_written.discard, path)


def _dispatch(
    sink: TraceSink, handler: Handler, latch: FailureLatch
) -> Callable[[Sequence[Any]], None]:
    def handle(items: Sequence[Any]) -> None:
        steps: list[Any] = []
        for item in items:
            if isinstance(item, TelemetrySample):
                sink.put_telemetry(item)
            elif item is END:
                handler.handle(steps)
                handler.finish()
                sink.end()
                steps = []
            else:
                steps.append(item)
        handler.handle(steps)

    def handle_or_stop(items: Sequence[Any]) -> None:
        try:
            handle(items)
        except Exception as error:
            latch.trip(error, "handling a step")

    return handle_or_stop
