"""The hooks' state machine: one step at a time from a forward's arguments to the queue."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moeprof.capture.failure import logger
from moeprof.capture.pipeline import Pipeline
from moeprof.capture.recorder import RoutingRecorder, Written
from moeprof.capture.routing import Routing, copy_if_any
from moeprof.capture.sink import FAILED
from moeprof.capture.transformers.hooks.guarded import guarded
from moeprof.capture.transformers.hooks.outbox import (
    FORWARD_RAISED,
    OUTSIDE,
    PACKED,
    TOO_LARGE,
    Outbox,
)
from moeprof.capture.transformers.requests.forward import (
    Forward,
    PackedBatchError,
    count_tokens,
    read_forward,
)
from moeprof.capture.transformers.requests.generation import (
    count_new_tokens,
    new_tokens_of,
    read_generate_call,
)
from moeprof.capture.transformers.requests.tracker import GenerateCall, RequestTracker, Stream
from moeprof.capture.transformers.traffic.handler import NO_ROUTER
from moeprof.capture.transformers.traffic.step import PackedStep, Step
from moeprof.trace.rows import Request

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OpenStep:
    """A forward that has begun."""

    step: Step | PackedStep  # without its routing
    forward: Forward | None = None  # None for a packed step
    stream: Stream | None = None


class CaptureSession:
    """Takes what the hooks see and hands it to `drain`. Only `route` may raise; nothing waits.

    The first error trips `latch`: from then on steps are counted as dropped, not recorded.
    """

    def __init__(
        self, pipeline: Pipeline, recorder: RoutingRecorder, max_pending_bytes: int
    ) -> None:
        self.bounded = False  # a step was opened outside the model, whose own hooks stand back
        self.forwards = 0
        self._recorder = recorder
        self._latch = pipeline.latch
        self._outbox = Outbox(pipeline.drain, max_pending_bytes)
        pipeline.recording.count_unsent(lambda: self._outbox.unsent_drops)
        self._tracker = RequestTracker(pipeline.recording.labels_of, pipeline.drain.offer)
        self._steps = 0
        self._open: OpenStep | None = None
        self._thread = threading.get_ident()
        self._skipping = False  # in a forward that was counted as it began

    @guarded("reading the arguments of a forward")
    def begin(self, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A forward of the model begins; its positional parameters are `names`."""
        self._begin(lambda: read_forward(names, args, kwargs), lambda: count_tokens(args, kwargs))

    @guarded("reading the arguments of a forward")
    def begin_traced(self, forward: Forward) -> None:
        """The same from inside compiled code."""
        if not self.bounded:
            self._begin(lambda: forward, lambda: forward.rows * forward.columns)

    @guarded("reading a packed batch")
    def begin_packed(self, read: Callable[[int], PackedStep], tokens: int, stream: Any) -> None:
        """A packed forward of `tokens`, padding included, begins on `stream`: `read(index)`."""
        self.forwards += 1
        try:
            self._abandon_open_step()
            self._open = OpenStep(read(self._next_index()))
            if not self._latch.tripped:
                with on_stream(stream):
                    self._reserve_rows(tokens, None)
        except Exception as error:
            self._latch.trip(error, "reading a packed batch")
            if self._open is None:
                self._outbox.lose(tokens, FAILED)

    @guarded("ending a step")
    def end_packed(self, token_ids: torch.Tensor, stream: Any) -> None:
        """The packed forward was launched on `stream`."""
        with on_stream(stream):
            if self._recorder.active and not self._latch.tripped:
                try:
                    self._recorder.write_token_ids(token_ids)
                except Exception as error:
                    self._latch.trip(error, "ending a step")
            self.end(None)

    @property
    def requests(self) -> int:
        """Requests so far."""
        return self._tracker.requests

    def new_request(self, place: int | None) -> tuple[int, str | None]:
        """Index and label of one more request, the `place`-th to arrive if that is known."""
        return self._tracker.new_request(place)

    def put_request(self, request: Request) -> None:
        """What is known of a request."""
        self._outbox.put(request)

    def route(self, slot: int, written: Written) -> None:
        """The router of layer `slot` returned `written`, or part of it."""
        if self._latch.tripped:
            return
        if self._recorder.active or self._recorder.capturing:
            self._recorder.write(slot, written)
        elif slot == 0 and not self._skipping and self._open is None:
            self._outbox.lose(int(written.experts.shape[0]), OUTSIDE)

    def route_step(self, slot: int, experts: torch.Tensor, weights: torch.Tensor) -> bool:
        """`route` of all rows of the step at once; False if `route` must see to it."""
        return self._latch.tripped or self._recorder.write_step(slot, experts, weights)

    def captured(self) -> bool:
        """Whether a CUDA graph is being captured: then this forward is no step."""
        capturing = bool(self._asked_whether_capturing())
        if capturing and not self._latch.tripped:
            self._prepare_capture()
        return capturing

    @guarded("asking for CUDA graphs")
    def _asked_whether_capturing(self) -> bool:
        return self._recorder.capturing

    @guarded("capturing a CUDA graph")
    def _prepare_capture(self) -> None:
        self._recorder.prepare_capture()

    def fail(self, error: Exception, doing: str) -> None:
        """`doing` failed: record nothing more."""
        self._latch.trip(error, doing)

    @guarded("ending a step")
    def end(self, output: Any) -> None:
        """The forward returned `output`."""
        if self._recorder.capturing:
            return  # what is open has raised, and a copy would become part of the CUDA graph
        opened, self._open, self._skipping = self._open, None, False
        if opened is None:
            return
        try:
            self._submit(opened, self._finish_routing())
        except Exception as error:
            self._latch.trip(error, "ending a step")
            self._outbox.lose(opened.step.tokens, FAILED)
        if opened.stream is None or opened.forward is None or isinstance(opened.step, PackedStep):
            return
        try:
            self._tracker.advance(opened.stream, opened.step.past, opened.forward, output)
        except Exception as error:
            self._latch.trip(error, "following the requests")

    def around_forward(
        self,
        names: Sequence[str],
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """`call(*args, **kwargs)`, a compiled forward of the model, as one step."""
        self.begin(names, args, kwargs)
        with self.boundary():
            output = call(*args, **kwargs)
        self.end(output)
        return output

    @contextlib.contextmanager
    def boundary(self) -> Iterator[None]:
        """While open, the step is the caller's: the model's own hooks open and close none."""
        self.bounded = True
        try:
            yield
        finally:
            self.bounded = False

    @contextlib.contextmanager
    def ignoring(self, really: bool) -> Iterator[None]:
        """While open, forwards of the model are no traffic, if `really`."""
        skipping, self._skipping = self._skipping, self._skipping or really
        bounded, self.bounded = self.bounded, self.bounded or really
        try:
            yield
        finally:
            self._skipping, self.bounded = skipping, bounded

    def around_generate(
        self, model: Any, generate: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """`generate(*args, **kwargs)`, with its requests followed."""
        call = self._enter(model, generate, args, kwargs)
        output = None
        try:
            output = generate(*args, **kwargs)
            return output
        finally:
            if call is not None:
                self._leave(call, output)

    @guarded("reading the arguments of generate")
    def _enter(
        self, model: Any, generate: Callable[..., Any], args: Any, kwargs: Any
    ) -> GenerateCall:
        call = read_generate_call(model, generate, args, kwargs)
        self._tracker.enter(call)
        return call

    @guarded("reading what generate returned")
    def _leave(self, call: GenerateCall, output: Any) -> None:
        new = new_tokens_of(call, output) if call.beams > 1 else None
        self._tracker.leave(call, count_new_tokens(call, output), copy_if_any(new))

    @guarded("ending the recording")
    def finish(self) -> None:
        """Nothing more will come."""
        self._abandon_open_step()
        self._outbox.send_lost(0)
        if not self.forwards:
            logger.warning(
                "no forward of the model was seen while it was recorded. If it ran, it was "
                "compiled before recording began: start recording first, or call "
                "torch.compiler.reset() before it"
            )

    def _begin(self, read: Callable[[], Forward], count: Callable[[], int]) -> None:
        self.forwards += 1
        try:
            if self._is_second_thread():
                self._outbox.lose(count(), FAILED)
                return
            self._abandon_open_step()
            self._skipping = False
            forward = read()
            self._open = self._read_step(forward)
            if not self._latch.tripped:
                self._reserve_rows(self._open.step.tokens, forward.input_ids)
        except PackedBatchError:
            self._skipping = True
            self._outbox.lose(count(), PACKED)
        except Exception as error:
            self._latch.trip(error, "reading the arguments of a forward")
            if self._open is None:
                self._outbox.lose(count(), FAILED)

    def _reserve_rows(self, tokens: int, token_ids: torch.Tensor | None) -> None:
        if not self._recorder.begin(tokens, token_ids):
            self._outbox.warn_once(TOO_LARGE)

    def _is_second_thread(self) -> bool:
        """Two threads in one model at a time would mix their steps: no recording beats a false one.

        Threads may take turns: a thread is in for as long as its step is open.
        """
        thread = threading.get_ident()
        if self._open is not None and self._thread != thread:
            self._latch.trip(RuntimeError(), "following two threads in one model at a time")
            return True
        self._thread = thread
        return False

    def _next_index(self) -> int:
        self._steps += 1
        return self._steps - 1

    def _read_step(self, forward: Forward) -> OpenStep:
        stream, past = self._tracker.place(forward)
        # After its prompt, `generate` adds columns that are no padding, at the next positions.
        says_more = not stream.in_generate or past < stream.batch.prompt_width
        step = Step(
            index=self._next_index(),
            batch=stream.batch,
            columns=forward.columns,
            past=past,
            mask=forward.copy_mask(past, whole=stream.columns == 0) if says_more else None,
            positions=copy_if_any(forward.positions) if says_more else None,
            has_token_ids=forward.input_ids is not None,
            recomputes=forward.cache is None,
        )
        return OpenStep(step, forward, stream)

    def _finish_routing(self) -> Routing | None:
        """The step's routing on its way to the host; None if there is no use for it."""
        if self._latch.tripped or not self._recorder.active:
            return None
        if not self._recorder.any_written and not self._recorder.frozen:
            self._outbox.warn_once(NO_ROUTER)
        try:
            return self._recorder.end()
        except Exception as error:
            self._latch.trip(error, "copying a step to the host")
            return None

    def _abandon_open_step(self) -> None:
        """A forward that began and never returned has raised."""
        opened, self._open = self._open, None
        if opened is not None:
            self._recorder.abandon()
            self._submit(opened, None, FORWARD_RAISED)

    def _submit(self, opened: OpenStep, routing: Routing | None, reason: str = FAILED) -> None:
        if routing is None and reason == FAILED and not self._latch.tripped:
            reason = TOO_LARGE
        ids = None if opened.forward is None else opened.forward.input_ids
        self._outbox.submit(opened.step, routing, reason, ids)


def on_stream(stream: Any) -> Any:
    """A context in which work goes to `stream`, or where it went, if that is None."""
    import torch

    return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)
