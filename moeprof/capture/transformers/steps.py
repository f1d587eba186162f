"""What the writer thread does with every step of a transformers model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from moeprof.capture.failure import FailureLatch
from moeprof.capture.routing import Routing
from moeprof.capture.sink import BEHIND, FAILED, TraceSink
from moeprof.capture.transformers.interpret import Interpreter, Traffic, is_decode
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

    def handle(self, items: Sequence[Any]) -> None:
        """Items of the queue, in order. Never raises."""
        for run in _runs(items):
            try:
                self._handle(run)
            except Exception as error:
                self._latch.trip(error, "interpreting a step")
                lost = sum(item.tokens for item in run if isinstance(item, Step | PackedStep))
                self._sink.drop(lost, FAILED)

    def finish(self) -> None:
        """Write what is known of unfinished requests."""
        self.handle([BatchEnd(batch) for batch in self._interpreter.batches()])

    def _handle(self, run: list[Any]) -> None:
        item = run[0]
        if len(run) > 1:
            routing = Routing.join([step.routing for step in run])
            self._record(item, routing, self._interpreter.decode_traffic(run, routing))
        elif isinstance(item, Step):
            traffic = self._interpreter.traffic(item)
            self._introduce(item.batch)
            self._record(item, item.routing, traffic)
        elif isinstance(item, PackedStep):
            self._record(item, item.routing, self._interpreter.packed_traffic(item))
        elif isinstance(item, BatchEnd):
            self._introduced.discard(item.batch.first_request)
            self._sink.put_requests(self._interpreter.finish(item, self._sink.clock_base))
        elif isinstance(item, Request):
            self._sink.put_requests([item])
        elif isinstance(item, Lost):
            self._sink.drop(item.tokens, item.reason)
            for batch in item.batches:
                self._interpreter.lose(batch)

    def _record(self, step: Step | PackedStep, routing: Routing | None, traffic: Traffic) -> None:
        reason = self._reason_to_drop(step, routing)
        if reason:
            self._sink.drop(len(traffic), reason)
        elif routing is not None and len(traffic):
            self._write(routing, traffic)

    def _reason_to_drop(self, step: Step | PackedStep, routing: Routing | None) -> str:
        if self._latch.tripped:
            return FAILED
        if routing is None:
            return step.drop_reason
        if isinstance(step, Step) and self._interpreter.is_lost(step.batch):
            return BEHIND
        return "" if routing.recorded.any() else NO_ROUTER

    def _write(self, routing: Routing, traffic: Traffic) -> None:
        try:
            rows = self._interpreter.rows(routing, traffic)
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


def _runs(items: Sequence[Any]) -> Iterator[list[Any]]:
    """`items` one by one, but decode steps of one batch that follow each other together."""
    run: list[Any] = []
    for item in items:
        decode = isinstance(item, Step) and is_decode(item)
        if run and not (decode and run[-1].batch is item.batch and _alike(run[-1], item)):
            yield run
            run = []
        if decode:
            run.append(item)
        else:
            yield [item]
    if run:
        yield run


def _alike(step: Step, other: Step) -> bool:
    """Whether the rows of two steps can stand in one array."""
    assert step.routing is not None and other.routing is not None
    pairs = zip(step.routing.parts, other.routing.parts, strict=False)
    same_buffers = all(one.layout is another.layout for one, another in pairs)
    return same_buffers and step.has_token_ids == other.has_token_ids
