"""What every engine's capture stands on: queue, writer thread, trace, telemetry, wired once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from moeprof.capture.drain import Drain
from moeprof.capture.failure import FailureLatch
from moeprof.capture.recording import Recording
from moeprof.capture.sink import TraceSink
from moeprof.capture.telemetry import TelemetrySampler
from moeprof.errors import InputError
from moeprof.trace import TelemetrySample, TraceWriter

MAX_PENDING_BYTES = 256 << 20

_being_written: set[Path] = set()


class Handler(Protocol):
    """Turns an engine's items into rows for the sink, in the writer thread. Never raises."""

    def handle(self, item: Any) -> None:
        """One item that the engine's hooks offered."""

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
) -> Iterator[Pipeline]:
    """Everything between an engine's hooks and the trace at `path`, until the context ends.

    Raises InputError if `path` is being recorded into already, or what `open_writer` raises.
    """
    with ExitStack() as stack:
        _claim(stack, Path(path).absolute())
        writer = open_writer()
        latch = FailureLatch()
        sink = TraceSink(writer, latch)
        stack.callback(sink.close)
        handler = make_handler(sink, latch)
        stack.callback(handler.finish)
        drain = Drain(_dispatch(sink, handler), sink.tick, max_pending_bytes)
        stack.callback(drain.close)
        sampler = TelemetrySampler(drain.offer, writer.clock_base)
        stack.callback(sampler.stop)
        sampler.start()
        recording = Recording(writer.path, sink.counts, latch, labels)
        yield Pipeline(drain, latch, recording, writer.clock_base)


def _claim(stack: ExitStack, path: Path) -> None:
    """Two recordings into one trace would delete each other's rows, `force` or not."""
    if path in _being_written:
        raise InputError(f"{path} is being recorded into already")
    _being_written.add(path)
    stack.callback(_being_written.discard, path)


def _dispatch(sink: TraceSink, handler: Handler) -> Callable[[Any], None]:
    def handle(item: Any) -> None:
        if isinstance(item, TelemetrySample):
            sink.put_telemetry(item)
        else:
            handler.handle(item)

    return handle
