"""What the writer thread does with every step of a transformers model."""

from __future__ import annotations

from typing import Any

import numpy as np

from moeprof.capture.failure import FailureLatch
from moeprof.capture.recorder import Routing
from moeprof.capture.sink import BEHIND, FAILED, TraceSink
from moeprof.capture.transformers.interpret import Interpreter, Traffic
from moeprof.capture.transformers.step import Batch, BatchEnd, Lost, PackedStep, Step
from moeprof.trace.rows import Request

NO_ROUTER = "no router gave one row a token"


class StepHandler:
    """Turns steps into rows for `sink`. Its methods belong to the writer thread."""

    def __init__(self, sink: TraceSink, interpreter: Interpreter, latch: FailureLatch) -> None:
        self._sink = sink
        self._interpreter = interpreter
        self._latch = latch
        self._introduced: set[int] = set()  # batches whose prompt lengths are in the trace

    def handle(self, item: Any) -> None:
        """One item of the queue. Never raises."""
        try:
            self._handle(item)
        except Exception as error:
            self._latch.trip(error, "interpreting a step")
            if isinstance(item, Step | PackedStep):
                self._sink.drop(item.tokens, FAILED)

    def finish(self) -> None:
        """Write what is known of unfinished requests."""
        for batch in self._interpreter.batches():
            self.handle(BatchEnd(batch))

    def _handle(self, item: Any) -> None:
        if isinstance(item, Step):
            traffic = self._interpreter.traffic(item)
            self._introduce(item.batch)
            self._record(item, traffic, lost=self._interpreter.is_lost(item.batch))
        elif isinstance(item, PackedStep):
            self._record(item, self._interpreter.packed_traffic(item), lost=False)
        elif isinstance(item, BatchEnd):
            self._introduced.discard(item.batch.first_request)
            self._sink.put_requests(self._interpreter.finish(item, self._sink.clock_base))
        elif isinstance(item, Request):
            self._sink.put_requests([item])
        elif isinstance(item, Lost):
            self._sink.drop(item.tokens, item.reason)
            for batch in item.batches:
                self._interpreter.lose(batch)

    def _record(self, step: Step | PackedStep, traffic: Traffic, *, lost: bool) -> None:
        reason = self._reason_to_drop(step, lost=lost)
        if reason:
            self._sink.drop(len(traffic), reason)
        elif step.routing is not None and len(traffic):
            self._write(step.routing, step.index, traffic)

    def _reason_to_drop(self, step: Step | PackedStep, *, lost: bool) -> str:
        if self._latch.tripped:
            return FAILED
        if step.routing is None:
            return step.drop_reason
        if lost:
            return BEHIND
        return "" if np.any(step.routing.recorded) else NO_ROUTER

    def _write(self, routing: Routing, step: int, traffic: Traffic) -> None:
        try:
            rows = self._interpreter.rows(routing, step, traffic)
        except Exception as error:
            self._latch.trip(error, "interpreting a step")
            self._sink.drop(len(traffic), FAILED)
            return
        self._sink.write(rows)

    def _introduce(self, batch: Batch) -> None:
        """Put the requests of `batch` in the trace once their prompt lengths are known."""
        known = batch.first_request in self._introduced
        if not known and self._interpreter.prompt_is_complete(batch):
            self._introduced.add(batch.first_request)
            self._sink.put_requests(self._interpreter.requests_of(batch, self._sink.clock_base))
