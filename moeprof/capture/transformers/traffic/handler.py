"""What the writer thread does with every step of a transformers model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from moeprof.capture.failure import FailureLatch
from moeprof.capture.routing import Routing
from moeprof.capture.sink import BEHIND, FAILED, TraceSink
from moeprof.capture.transformers.traffic.beams import BeamSearch, Reorder, UnknownBeamError
from moeprof.capture.transformers.traffic.interpret import Interpreter, is_decode
from moeprof.capture.transformers.traffic.step import Batch, BatchEnd, Lost, PackedStep, Step
from moeprof.capture.transformers.traffic.tokens import Traffic
from moeprof.trace.rows import Request

NO_ROUTER = "no router gave one row a token"
UNKNOWN_BEAM = "which rows of a beam search were kept is not known"


class StepHandler:
    """Turns steps into rows for `sink`. Its methods belong to the writer thread."""

    def __init__(self, sink: TraceSink, interpreter: Interpreter, latch: FailureLatch) -> None:
        self._sink = sink
        self._interpreter = interpreter
        self._latch = latch
        self._searches: dict[int, BeamSearch] = {}
        self._introduced: set[int] = set()  # batches whose prompt lengths are in the trace

    def handle(self, items: Sequence[Any]) -> None:
        """Items of the queue, in order. Never raises."""
        for run in self._split(items):
            try:
                self._handle(run)
            except Exception as error:
                self._latch.trip(error, "interpreting a step")
                lost = sum(item.tokens for item in run if isinstance(item, Step | PackedStep))
                self._sink.drop(lost, FAILED)

    def finish(self) -> None:
        """Write what is known of unfinished requests. Never raises."""
        try:
            self.handle([BatchEnd(batch) for batch in self._interpreter.batches()])
        except Exception as error:
            self._latch.trip(error, "ending the recording")

    def _split(self, items: Sequence[Any]) -> list[list[Any]]:
        """What is handled at once; every item is in it."""
        try:
            return list(_runs(items))
        except Exception as error:
            self._latch.trip(error, "interpreting a step")
            return [[item] for item in items]

    def _handle(self, run: list[Any]) -> None:
        item = run[0]
        if len(run) > 1:
            routing = Routing.join([step.routing for step in run])
            self._record(item, routing, self._interpreter.decode_traffic(run, routing))
        elif isinstance(item, Step):
            self._handle_step(item)
        elif isinstance(item, PackedStep):
            self._record(item, item.routing, self._interpreter.packed_traffic(item))
        elif isinstance(item, Reorder):
            self._search(item.batch).reorder(item)
        elif isinstance(item, BatchEnd):
            self._handle_end(item)
        elif isinstance(item, Request):
            self._sink.put_requests([item])
        elif isinstance(item, Lost):
            self._sink.drop(item.tokens, item.reason)
            for batch in item.batches:
                self._interpreter.lose(batch)

    def _handle_step(self, step: Step) -> None:
        traffic = self._interpreter.traffic(step)
        if step.batch.beams is not None:
            self._search(step.batch).add(step, traffic)
            return
        self._introduce(step.batch)
        self._record(step, step.routing, traffic)

    def _handle_end(self, end: BatchEnd) -> None:
        if end.batch.beams is not None:
            end = self._end_search(end)
        self._introduced.discard(end.batch.first_request)
        self._sink.put_requests(self._interpreter.finish(end, self._sink.clock_base))

    def _search(self, batch: Batch) -> BeamSearch:
        return self._searches.setdefault(batch.first_request, BeamSearch(batch))

    def _end_search(self, end: BatchEnd) -> BatchEnd:
        """Record what came of a beam search, now that it is known."""
        search = self._search(end.batch)
        del self._searches[end.batch.first_request]
        try:
            if end.sequences is None:
                raise UnknownBeamError
            sequences = end.sequences.array()
            survivors = search.survivors(sequences)
        except UnknownBeamError:
            for _, traffic in search.everything():
                self._sink.drop(len(traffic), UNKNOWN_BEAM)
            return end
        for step, traffic in survivors:
            self._record(step, step.routing, traffic)
        return replace(end, lengths=tuple(search.length(sequence) for sequence in sequences))

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
