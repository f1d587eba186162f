"""The hooks' state machine: one step at a time from a forward's arguments to the queue."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moeprof.capture.drain import Drain
from moeprof.capture.failure import FailureLatch, logger
from moeprof.capture.recorder import HostCopy, Routing, RoutingRecorder, copy_to_host
from moeprof.capture.transformers.forward import Forward, PackedBatchError, read_forward
from moeprof.capture.transformers.generation import count_new_tokens, read_generate_call
from moeprof.capture.transformers.requests import Labeller, RequestTracker, Stream
from moeprof.capture.transformers.routers import Routed
from moeprof.capture.transformers.sink import BEHIND, FAILED, NO_ROUTER
from moeprof.capture.transformers.step import Batch, Lost, Step

if TYPE_CHECKING:
    import torch

FORWARD_RAISED = "the forward raised"
OUTSIDE = "routed outside a forward of the recorded model"
PACKED = "several sequences packed in one row"


@dataclass(frozen=True)
class OpenStep:
    """A forward that has begun."""

    forward: Forward
    stream: Stream
    step: Step  # without its routing


class CaptureSession:
    """Takes what the hooks see and hands it to `drain`. Only `route` may raise; nothing waits.

    The first error trips `latch`: from then on steps are counted as dropped, not recorded.
    """

    def __init__(
        self,
        recorder: RoutingRecorder,
        drain: Drain,
        latch: FailureLatch,
        labels: Labeller,
        max_pending_bytes: int,
    ) -> None:
        self._recorder = recorder
        self._drain = drain
        self._latch = latch
        self._tracker = RequestTracker(labels, drain.offer)
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

    def begin(self, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A forward of the model begins; its positional parameters are `names`."""
        if self._is_second_thread():
            self._lose(_count_tokens(args, kwargs), FAILED)
            return
        try:
            self._abandon_open_step()
            self._skipping = False
            self._open = self._read_step(read_forward(names, args, kwargs))
            if not self._latch.tripped:
                self._recorder.begin(self._open.step.tokens)
        except PackedBatchError:
            self._skipping = True
            self._lose(_count_tokens(args, kwargs), PACKED)
        except Exception as error:
            self._latch.trip(error, "reading the arguments of a forward")
            if self._open is None:
                self._lose(_count_tokens(args, kwargs), FAILED)

    def route(self, slot: int, routed: Routed) -> None:
        """The router of layer `slot` returned `routed`, or part of it."""
        if self._latch.tripped:
            return
        if self._recorder.active:
            self._recorder.write(slot, *routed)
        elif slot == 0 and not self._skipping:
            self._lose(int(routed[0].shape[0]), OUTSIDE)

    def fail(self, error: Exception, doing: str) -> None:
        """`doing` failed: record nothing more."""
        self._latch.trip(error, doing)

    def end(self, output: Any) -> None:
        """The forward returned `output`."""
        opened, self._open, self._skipping = self._open, None, False
        if opened is None:
            return
        try:
            self._submit(opened.step, self._finish_routing())
        except Exception as error:
            self._latch.trip(error, "ending a step")
            self._lose(opened.step.tokens, FAILED)
        try:
            self._tracker.advance(opened.stream, opened.step.past, opened.forward, output)
        except Exception as error:
            self._latch.trip(error, "following the requests")

    def around_generate(
        self, model: torch.nn.Module, generate: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """`generate(*args, **kwargs)`, with its requests followed."""
        call = None
        try:
            call = read_generate_call(model, generate, args, kwargs)
            self._tracker.enter(call)
        except Exception as error:
            self._latch.trip(error, "reading the arguments of generate")
        output = None
        try:
            output = generate(*args, **kwargs)
            return output
        finally:
            if call is not None:
                with contextlib.suppress(Exception):
                    self._tracker.leave(call, count_new_tokens(call, output))

    def finish(self) -> None:
        """Nothing more will come."""
        try:
            self._abandon_open_step()
            self._send_lost()
        except Exception as error:
            self._latch.trip(error, "ending the recording")

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

    def _read_step(self, forward: Forward) -> OpenStep:
        stream, past = self._tracker.place(forward)
        step = Step(
            index=self._steps,
            batch=stream.batch,
            columns=forward.columns,
            past=past,
            mask=_copy_mask(forward, past, whole=stream.columns == 0),
            positions=_copy(forward.positions),
            token_ids=_copy(forward.input_ids),
            recomputes=forward.cache is None,
        )
        self._steps += 1
        return OpenStep(forward, stream, step)

    def _finish_routing(self) -> Routing | None:
        """The step's routing on its way to the host; None if there is no use for it."""
        if self._latch.tripped or not self._recorder.active:
            return None
        if not self._recorder.any_written:
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
            self._submit(opened.step, None, FORWARD_RAISED)

    def _submit(self, step: Step, routing: Routing | None, reason: str = FAILED) -> None:
        """Queue the step with its routing; without, if that is too much; or only its number."""
        self._send_lost()
        if routing is not None:
            size = routing.nbytes + step.metadata_bytes
            whole = replace(step, routing=routing)
            if self._drain.offer(whole, size, reserve=self._reserve):
                return
            reason = BEHIND
            self._warn_once(BEHIND)
        counted = replace(step, drop_reason=reason)
        if not self._drain.offer(counted, max(1, step.metadata_bytes)):
            self._unsent_batches[step.batch.first_request] = step.batch
            self._lose(step.tokens, reason)

    def _lose(self, tokens: int, reason: str) -> None:
        if tokens:
            self._unsent[reason] += tokens
            if reason in (OUTSIDE, PACKED):
                self._warn_once(reason)

    def _send_lost(self) -> None:
        """Tell the writer thread of what was lost, before any later step."""
        batches = tuple(self._unsent_batches.values())
        for reason, tokens in self._unsent.items():
            self._drain.offer(Lost(tokens, reason, batches))
        self._unsent.clear()
        self._unsent_batches.clear()

    def _warn_once(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            logger.warning("tokens are not being recorded: %s; they are counted as dropped", reason)


def _copy(tensor: torch.Tensor | None) -> HostCopy | None:
    return None if tensor is None else copy_to_host(tensor)


def _copy_mask(forward: Forward, past: int, *, whole: bool) -> HostCopy | None:
    """The mask of the new columns; on a stream's first forward of the cached ones as well."""
    mask = forward.mask
    if mask is None:
        return None
    if mask.shape[1] >= past + forward.columns:
        return copy_to_host(mask[:, (0 if whole else past) : past + forward.columns])
    return copy_to_host(mask) if mask.shape[1] == forward.columns else None


def _count_tokens(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Tokens of a forward that could not be read, padding included; 0 if there is no telling."""
    for value in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args):
        shape: tuple[int, ...] = tuple(getattr(value, "shape", ()))
        if len(shape) >= 2:
            return shape[0] * shape[1]
    return 0
