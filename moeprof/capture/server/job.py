"""One recording: answers in the order of their prompts, to a trace that opens with the first."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from moeprof.capture.failure import FailureLatch
from moeprof.capture.http import HttpError, is_loopback
from moeprof.capture.limits import Limits
from moeprof.capture.pipeline import MAX_PENDING_BYTES, Pipeline, open_pipeline
from moeprof.capture.server.answers import Answered, AnswerError, numbered
from moeprof.capture.server.asker import Asker
from moeprof.capture.server.result import ServerCapture
from moeprof.capture.server.window import Window
from moeprof.capture.sink import TraceSink
from moeprof.errors import MoeprofError
from moeprof.trace import Request, TokenRows, TraceWriter
from moeprof.trace.formats.block import Findings
from moeprof.trace.writer import SIZE_LIMIT

Progress = Callable[[int, int], None]  # prompts done, prompts in all
_HOPELESS_STATUS = (401, 403, 404, 405)
_FAILURES_IN_A_ROW = 10
UNRECORDED = "not recorded before the end"


class _Rows:
    """Hands rows and requests to the sink, in the writer thread."""

    def __init__(self, sink: TraceSink, latch: FailureLatch) -> None:
        self._sink = sink

    def handle(self, items: Sequence[Any]) -> None:
        """Rows or requests, in order; the sink deals with its errors."""
        for item in items:
            if isinstance(item, TokenRows):
                self._sink.write(item)
            else:
                self._sink.put_requests([item])

    def finish(self) -> None:
        """Nothing is held."""


class Job:
    """Takes answers in order, writes and counts them, and knows when it is over."""

    def __init__(self, asker: Asker, output: Path, limits: Limits, force: bool) -> None:
        self._asker = asker
        self._output = output
        self._limits = limits
        self._force = force
        self._pipeline: Pipeline | None = None
        self._found = Findings()
        self._failed: Counter[str] = Counter()
        self._in_a_row = self._answered = 0
        self._problem: str | None = None
        self._hopeless = False
        self._requests = self._steps = self._unasked = self._repeated = 0
        self._cached: int | None = None

    def run(self, concurrency: int, progress: Progress | None) -> ServerCapture:
        """Ask, record, and say what came of it."""
        count = len(self._asker.prompts)
        window = Window(
            self._asker.ask,
            count,
            workers=concurrency,
            ahead=2 * concurrency,
            cancel=self._asker.end,
        )
        with ExitStack() as stack:
            try:
                with window:
                    for number, outcome in window.results(self._is_over):
                        self._take(number, outcome, stack)
                        if progress is not None:
                            progress(number + 1, count)
            finally:  # also where the user interrupts: what has come is kept
                for number, outcome in self._answers_left(window):
                    self._take(number, outcome, stack)
        rest = count - self._answered - self._failed.total()
        self._failed += Counter({UNRECORDED: rest})  # never asked, or ended
        return self._result()

    def _answers_left(self, window: Window[Any]) -> Iterator[tuple[int, Any]]:
        """Answers that came while an older one was waited for."""
        for number, outcome in window.finished():
            if not isinstance(outcome, MoeprofError) and not self._is_closed():
                yield number, outcome

    def _is_over(self) -> bool:
        return self._hopeless or self._in_a_row >= _FAILURES_IN_A_ROW or self._is_closed()

    def _is_closed(self) -> bool:
        """Whether the trace takes no more: its time is over, it is full or it failed."""
        if self._pipeline is None:
            return False
        recording = self._pipeline.recording
        full = SIZE_LIMIT in recording.drop_reasons
        return recording.ended or recording.error is not None or full

    def _take(self, number: int, outcome: Any, stack: ExitStack) -> None:
        if isinstance(outcome, MoeprofError):
            self._fail(number, outcome)
            return
        answers, found = outcome
        self._in_a_row = 0
        self._answered += 1
        if self._pipeline is None:
            self._pipeline = stack.enter_context(self._open())
        self._found.skipped += found.skipped
        self._found.notes |= found.notes
        self._write(self._pipeline, number, answers)

    def _fail(self, number: int, error: MoeprofError) -> None:
        kind = error.kind if isinstance(error, HttpError | AnswerError) else type(error).__name__
        self._failed[kind] += 1
        self._in_a_row += 1
        self._hopeless = not self._requests and _is_hopeless(error)  # one that worked shows hope
        if self._problem is None:
            place = self._asker.prompts[number].place
            self._problem = str(error) if self._hopeless else f"{place}: {error}"

    def _open(self) -> AbstractContextManager[Pipeline]:
        asker, limits = self._asker, self._limits
        return open_pipeline(
            partial(
                TraceWriter,
                self._output,
                asker.model,
                engine=asker.engine.name,
                engine_version=asker.served.engine_version,
                token_ids=asker.asking.token_ids,
                force=self._force,
                max_bytes=limits.max_bytes,
                rotate=limits.rotate,
                sampling=limits.sampling,
                aggregate_steps=limits.aggregate_steps,
            ),
            self._output,
            _Rows,
            labels=None,
            max_pending_bytes=MAX_PENDING_BYTES,
            limits=limits,
            telemetry=is_loopback(asker.client.url),
        )

    def _write(self, pipeline: Pipeline, number: int, answers: Sequence[Answered]) -> None:
        first = number * self._asker.asking.choices
        placed = numbered(answers, first, self._steps)
        for index, (answer, rows) in enumerate(zip(answers, placed, strict=True)):
            label = self._asker.prompts[number].label
            request = Request(
                first + index, label, prompt_tokens=answer.prompt, output_tokens=answer.output
            )
            _offer(pipeline, request, 1)
            if len(rows):
                self._steps = int(rows.step[-1]) + 1
                _offer(pipeline, rows, _nbytes(rows))
            self._count(answer)

    def _count(self, answer: Answered) -> None:
        self._requests += 1
        self._unasked += answer.unasked
        self._repeated += answer.repeated
        if answer.cached is not None:
            self._cached = (self._cached or 0) + answer.cached

    def _result(self) -> ServerCapture:
        asker, pipeline = self._asker, self._pipeline
        if pipeline is None:
            of = f"none of {len(asker.prompts):,} prompts was recorded"
            raise MoeprofError(f"{self._problem}; {of}" if self._problem else of)
        recording = pipeline.recording
        return ServerCapture(
            path=str(recording.path),
            engine=asker.engine.name,
            engine_version=asker.served.engine_version,
            model=asker.model.name,
            prompts=len(asker.prompts),
            requests=self._requests,
            failed=dict(sorted(self._failed.items())),
            tokens=recording.tokens,
            dropped=recording.dropped,
            prefill_tokens=recording.prefill_tokens,
            decode_tokens=recording.decode_tokens,
            cached_tokens=self._cached,
            cached_kept=asker.keep_cached and bool(self._cached),
            unasked_tokens=self._unasked,
            repeated_tokens=self._repeated,
            sampled_out=recording.sampled_out,
            rotated=recording.rotated,
            notes=self._notes(),
            problem=recording.error or self._problem,
        )

    def _notes(self) -> list[str]:
        notes = [f"{count:,} x {reason}" for reason, count in sorted(self._found.skipped.items())]
        notes += list(self._found.notes)
        notes.append("the server's batches are not in its answers: steps are those of each request")
        if self._cached is None:
            notes.append(
                "the server does not say which prompt tokens came from its prefix cache: those "
                "count as if each request had computed them"
            )
        return notes


def _is_hopeless(error: MoeprofError) -> bool:
    """Whether every other prompt would fail alike."""
    if isinstance(error, HttpError):
        return error.status in _HOPELESS_STATUS
    return isinstance(error, AnswerError) and error.hopeless


def _offer(pipeline: Pipeline, item: Any, nbytes: int) -> None:
    """Queue `item`, waiting for room: the server's answers can wait, unlike a model that runs."""
    size = min(nbytes, MAX_PENDING_BYTES // 4)
    while not pipeline.drain.offer(item, size) and not pipeline.latch.tripped:
        time.sleep(0.02)


def _nbytes(rows: TokenRows) -> int:
    return int(rows.experts.nbytes + rows.position.nbytes + rows.step.nbytes)
