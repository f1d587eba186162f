"""The hooks' state machine: one step at a time from a forward's arguments to the queue."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from moeprof.capture.drain import ITEM_BYTES
from moeprof.capture.failure import logger
from moeprof.capture.pipeline import Pipeline
from moeprof.capture.recorder import RoutingRecorder, Written
from moeprof.capture.routing import HostCopy, Routing, copy_to_host
from moeprof.capture.sink import BEHIND, FAILED
from moeprof.capture.transformers.forward import Forward, PackedBatchError, read_forward
from moeprof.capture.transformers.generation import (
    count_new_tokens,
    new_tokens_of,
    read_generate_call,
)
from moeprof.capture.transformers.requests import GenerateCall, RequestTracker, Stream
from moeprof.capture.transformers.step import Batch, Lost, PackedStep, Step
from moeprof.capture.transformers.steps import NO_ROUTER
from moeprof.trace.rows import Request

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
T = TypeVar("T")

FORWARD_RAISED = "the forward raised"
OUTSIDE = "routed outside a forward of the recorded model"
PACKED = "several sequences packed in one row"
TOO_LARGE = "the step is larger than the buffer that a CUDA graph writes"

WARNINGS = {
    NO_ROUTER: (
        "no router spoke during a forward. A model that was compiled before recording began never "
        "calls our hooks: start recording first, or call torch.compiler.reset() before it"
    ),
}


@dataclass(frozen=True)
class OpenStep:
    """A forward that has begun."""

    step: Step | PackedStep  # without its routing
    forward: Forward | None = None  # None for a packed step
    stream: Stream | None = None


def guarded(
    doing: str,
) -> Callable[
    [Callable[Concatenate[CaptureSession, P], T]],
    Callable[Concatenate[CaptureSession, P], T | None],
]:
    """For methods that the model's thread calls: `doing` fails at the cost of the recording."""

    def decorate(
        method: Callable[Concatenate[CaptureSession, P], T],
    ) -> Callable[Concatenate[CaptureSession, P], T | None]:
        @functools.wraps(method)
        def guard(self: CaptureSession, /, *args: P.args, **kwargs: P.kwargs) -> T | None:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:
                self.fail(error, doing)
                return None

        return guard

    return decorate


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
        self._drain = pipeline.drain
        self._latch = pipeline.latch
        pipeline.recording.count_unsent(lambda: self.unsent_drops)
        self._tracker = RequestTracker(pipeline.recording.labels_of, self._drain.offer)
        # Routing leaves this much of the bound to metadata, so that what is dropped is counted.
        self._reserve = max_pending_bytes // 8
        self._steps = 0
        self._open: OpenStep | None = None
        self._thread = threading.get_ident()
        self._skipping = False  # in a forward that was counted as it began
        self._unsent: Counter[str] = Counter()
        self._unsent_batches: dict[int, Batch] = {}
        self._warned: set[str] = set()

    @property
    def unsent_drops(self) -> int:
        """Tokens dropped that the writer thread has not been told of yet."""
        return sum(self._unsent.values())

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
                self._lose(tokens, FAILED)

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
        self._drain.offer(request)

    def route(self, slot: int, written: Written) -> None:
        """The router of layer `slot` returned `written`, or part of it."""
        if self._latch.tripped:
            return
        if self._recorder.active or self._recorder.capturing:
            self._recorder.write(slot, written)
        elif slot == 0 and not self._skipping and self._open is None:
            self._lose(int(written.experts.shape[0]), OUTSIDE)

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
            self._lose(opened.step.tokens, FAILED)
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
        self, model: torch.nn.Module, generate: Callable[..., Any], args: Any, kwargs: Any
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
        self, model: torch.nn.Module, generate: Callable[..., Any], args: Any, kwargs: Any
    ) -> GenerateCall:
        call = read_generate_call(model, generate, args, kwargs)
        self._tracker.enter(call)
        return call

    @guarded("reading what generate returned")
    def _leave(self, call: GenerateCall, output: Any) -> None:
        new = new_tokens_of(call, output) if call.beams > 1 else None
        self._tracker.leave(call, count_new_tokens(call, output), _copy(new))

    @guarded("ending the recording")
    def finish(self) -> None:
        """Nothing more will come."""
        self._abandon_open_step()
        self._send_lost(0)
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
                self._lose(count(), FAILED)
                return
            self._abandon_open_step()
            self._skipping = False
            forward = read()
            self._open = self._read_step(forward)
            if not self._latch.tripped:
                self._reserve_rows(self._open.step.tokens, forward.input_ids)
        except PackedBatchError:
            self._skipping = True
            self._lose(count(), PACKED)
        except Exception as error:
            self._latch.trip(error, "reading the arguments of a forward")
            if self._open is None:
                self._lose(count(), FAILED)

    def _reserve_rows(self, tokens: int, token_ids: torch.Tensor | None) -> None:
        if not self._recorder.begin(tokens, token_ids):
            self._warn_once(TOO_LARGE)

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
            mask=_copy_mask(forward, past, whole=stream.columns == 0) if says_more else None,
            positions=_copy(forward.positions) if says_more else None,
            has_token_ids=forward.input_ids is not None,
            recomputes=forward.cache is None,
        )
        return OpenStep(step, forward, stream)

    def _finish_routing(self) -> Routing | None:
        """The step's routing on its way to the host; None if there is no use for it."""
        if self._latch.tripped or not self._recorder.active:
            return None
        if not self._recorder.any_written and not self._recorder.frozen:
            self._warn_once(NO_ROUTER)
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
        """Queue the step with its routing; without, if that is too much; or only its number."""
        step, in_order = opened.step, self._send_lost()
        if routing is not None:
            step.routing = routing
            nbytes = ITEM_BYTES + step.nbytes
            if in_order and self._drain.offer(step, nbytes, reserve=self._reserve):
                return
            reason = BEHIND
            self._warn_once(BEHIND)
        elif not self._latch.tripped and reason == FAILED:
            reason = TOO_LARGE
        step.routing, step.drop_reason = None, reason
        if isinstance(step, Step) and opened.forward is not None:
            # The ids stand in the routing otherwise; they tell which rows are done.
            step.token_ids = _copy(opened.forward.input_ids)
        if not in_order or not self._drain.offer(step, ITEM_BYTES + step.nbytes):
            if isinstance(step, Step):
                self._unsent_batches[step.batch.first_request] = step.batch
            self._lose(step.tokens, reason)

    def _lose(self, tokens: int, reason: str) -> None:
        if tokens:
            self._unsent[reason] += tokens
            if reason in (OUTSIDE, PACKED):
                self._warn_once(reason)

    def _send_lost(self, nbytes: int = ITEM_BYTES) -> bool:
        """Tell the writer thread of what was lost, before any later step. False if it must wait."""
        batches = tuple(self._unsent_batches.values())
        for reason, tokens in list(self._unsent.items()):
            if not self._drain.offer(Lost(tokens, reason, batches), nbytes):
                return False
            del self._unsent[reason]
        self._unsent_batches.clear()
        return True

    def _warn_once(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            why = WARNINGS.get(reason, reason)
            logger.warning("tokens are not being recorded: %s; they are counted as dropped", why)


def on_stream(stream: Any) -> Any:
    """A context in which work goes to `stream`, or where it went, if that is None."""
    import torch

    return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)


def _copy(tensor: torch.Tensor | None) -> HostCopy | None:
    return None if tensor is None else copy_to_host(tensor)


def _copy_mask(forward: Forward, past: int, *, whole: bool) -> HostCopy | None:
    """The mask of the new columns; on a stream's first forward of the cached ones as well."""
    mask = forward.padding_mask()
    if mask is None:
        return None
    if mask.shape[1] >= past + forward.columns:
        return copy_to_host(mask[:, (0 if whole else past) : past + forward.columns])
    return copy_to_host(mask) if mask.shape[1] == forward.columns else None


def count_tokens(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Tokens of a forward that could not be read, padding included; 0 if there is no telling."""
    for value in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args):
        shape: tuple[int, ...] = tuple(getattr(value, "shape", ()))
        if len(shape) >= 2:
            return shape[0] * shape[1]
    return 0
