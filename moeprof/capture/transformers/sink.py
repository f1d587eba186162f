"""The end of the way: what the writer thread does with every item, and the counts of it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from moeprof.capture.failure import FailureLatch
from moeprof.capture.recorder import Routing
from moeprof.capture.recording import Counts
from moeprof.capture.transformers.interpret import Interpreter, Traffic
from moeprof.capture.transformers.step import Batch, BatchEnd, Lost, Step
from moeprof.trace import Phase, Request, TelemetrySample, TraceWriter, open_trace

FAILED = "recording failed"
BEHIND = "the writer fell behind"
NO_ROUTER = "no router gave one row a token"


class TraceSink:
    """Turns steps into rows of a trace. All methods but `counts` belong to the writer thread.

    After a failure it writes nothing more, and still counts what it is handed.
    """

    def __init__(self, writer: TraceWriter, interpreter: Interpreter, latch: FailureLatch) -> None:
        self.counts = Counts()
        self._writer = writer
        self._interpreter = interpreter
        self._latch = latch
        self._introduced: set[int] = set()  # batches whose prompt lengths are in the trace

    def handle(self, item: Any) -> None:
        """One item of the queue. Never raises."""
        try:
            if isinstance(item, Step):
                self._handle_step(item)
            elif isinstance(item, BatchEnd):
                self._introduced.discard(item.batch.first_request)
                self._put(self._interpreter.finish(item, self._writer.clock_base))
            elif isinstance(item, Lost):
                self._drop(item.tokens, item.reason)
                for batch in item.batches:
                    self._interpreter.lose(batch)
            elif isinstance(item, TelemetrySample) and not self._latch.tripped:
                self._writer.put_telemetry(item)
        except Exception as error:
            self._latch.trip(error, "interpreting a step")
            if isinstance(item, Step):
                self._drop(item.tokens, FAILED)

    def tick(self) -> None:
        """Let the writer flush what has waited. Never raises."""
        if not self._latch.tripped:
            self._guarded(self._writer.tick)

    def close(self) -> None:
        """Write what is known of unfinished requests, close the trace, settle the counts."""
        for batch in self._interpreter.batches():
            self.handle(BatchEnd(batch))
        self._guarded(self._writer.close)
        if self._latch.tripped:
            with contextlib.suppress(Exception):
                self._recount()

    def _handle_step(self, step: Step) -> None:
        traffic = self._interpreter.traffic(step)
        self._introduce(step.batch)
        reason = self._reason_to_drop(step)
        if reason:
            self._drop(len(traffic), reason)
        elif step.routing is not None and len(traffic):
            self._write(step.routing, step.index, traffic)

    def _reason_to_drop(self, step: Step) -> str:
        if self._latch.tripped:
            return FAILED
        if step.routing is None:
            return step.drop_reason
        if self._interpreter.is_lost(step.batch):
            return BEHIND
        return "" if any(step.routing.recorded) else NO_ROUTER

    def _write(self, routing: Routing, step: int, traffic: Traffic) -> None:
        try:
            rows = self._interpreter.rows(routing, step, traffic)
        except Exception as error:
            self._latch.trip(error, "interpreting a step")
            self._drop(len(traffic), FAILED)
            return
        # The writer counts what it loses; `_recount` will see.
        self._guarded(lambda: self._writer.write(rows))
        decode = int(np.count_nonzero(traffic.phase == Phase.DECODE))
        self.counts.by_phase[Phase.DECODE] += decode
        self.counts.by_phase[Phase.PREFILL] += len(traffic) - decode

    def _introduce(self, batch: Batch) -> None:
        """Put the requests of `batch` in the trace once their prompt lengths are known."""
        known = batch.first_request in self._introduced
        if not known and self._interpreter.prompt_is_complete(batch):
            self._introduced.add(batch.first_request)
            self._put(self._interpreter.requests_of(batch, self._writer.clock_base))

    def _put(self, requests: list[Request]) -> None:
        if not self._latch.tripped:
            for request in requests:
                self._writer.put_request(request)

    def _drop(self, tokens: int, reason: str) -> None:
        if tokens:
            self.counts.dropped[reason] += tokens
            self._guarded(lambda: self._writer.drop(tokens, reason))

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._latch.trip(error, "writing the trace")

    def _recount(self) -> None:
        """After a failure, what can be read back is what was recorded; the rest was dropped."""
        phase = open_trace(self._writer.path).phase
        before = self.counts.recorded
        self.counts.by_phase = Counter(
            {p: int(np.count_nonzero(phase == p)) for p in (Phase.PREFILL, Phase.DECODE)}
        )
        self.counts.dropped[FAILED] += before - self.counts.recorded
