"""Continuous batching of transformers: steps that pack tokens of many requests into one row.

Who a token belongs to stands in the scheduler's own records, so a step is taken where the model
runner computes a batch. That is also outside of whatever was compiled or captured into a CUDA
graph: replays are steps like others. Its warm-up batches are no traffic.
"""

from __future__ import annotations

import re
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moeprof.capture.transformers.boundaries import wrap_method
from moeprof.capture.transformers.hooks.session import CaptureSession
from moeprof.capture.transformers.traffic.step import PackedStep
from moeprof.trace.rows import Phase, Request

if TYPE_CHECKING:
    import torch

WARMUP = "__warmup_"
NUMBERED = re.compile(r"req_(\d+)")


@dataclass
class _Known:
    """A request that has been seen, and its state in the scheduler."""

    index: int
    label: str | None
    arrival_s: float
    prompt_tokens: int
    state: Any

    def request(self) -> Request:
        """What is known of it by now."""
        before = self.state.initial_tokens[self.prompt_tokens :]  # it was put back in the queue
        generated = len(before) + len(self.state.generated_tokens)
        return Request(
            index=self.index,
            label=self.label,
            arrival_s=self.arrival_s,
            prompt_tokens=self.prompt_tokens,
            output_tokens=generated or None,
        )


class _Batch(NamedTuple):
    """A batch that a model runner computes."""

    runner: Any
    states: list[Any]  # the scheduler's records of its requests, in order of their tokens
    token_ids: torch.Tensor  # [..., T], padding included
    stream: Any  # torch.cuda.Stream that it runs on, None for the current one


class ContinuousBatches:
    """Follows the requests of the batch processors that run `model`."""

    def __init__(self, model: torch.nn.Module, session: CaptureSession, clock_base: float) -> None:
        self._model = weakref.ref(model)
        self._session = session
        self._clock_base = clock_base
        self._known: dict[tuple[int, str], _Known] = {}
        self._first_of: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def attach(self, stack: ExitStack) -> None:
        """Stand around the model runner's batches, if this transformers has one."""
        try:
            from transformers.generation.continuous_batching.model_runner import ModelRunner
        except ImportError:
            return
        stack.callback(wrap_method(ModelRunner, "compute_batch", self._around_compute_batch))
        stack.callback(self._finish)

    def _around_compute_batch(self, compute: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        model = self._model()
        if not any(value is model for value in (*args, *kwargs.values())):
            return compute(*args, **kwargs)
        batch = self._batch(args, kwargs)
        if batch is None:
            with self._session.ignoring(True):
                return compute(*args, **kwargs)
        self._session.begin_packed(
            lambda index: self._read(index, batch.runner, batch.states),
            int(batch.token_ids.shape[-1]),
            batch.stream,
        )
        with self._session.boundary():
            result = compute(*args, **kwargs)
        # Only now: with asynchronous batches the last tokens are filled in on the device.
        self._session.end_packed(batch.token_ids, batch.stream)
        return result

    def _batch(self, args: Any, kwargs: Any) -> _Batch | None:
        """What is about to run; None if it is no traffic, or cannot be told."""
        try:
            batch = _read_batch(*args, **kwargs)
            return None if _is_warmup(batch.states) else batch
        except Exception as error:
            self._session.fail(error, "reading a packed batch")
            return None

    def _read(self, index: int, runner: Any, states: list[Any]) -> PackedStep:
        self._forget_finished()
        known = [self._request(runner, future.state) for future in states]
        lengths = [future.query_length for future in states]
        # The scheduler has moved the offsets past this step already.
        starts = [future.state.position_offset - future.query_length for future in states]
        position = np.concatenate(
            [np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)]
        )
        prompt = np.repeat([request.prompt_tokens for request in known], lengths)
        return PackedStep(
            index=index,
            request=np.repeat([request.index for request in known], lengths).astype(np.int32),
            position=position.astype(np.int32),
            phase=np.where(position < prompt, Phase.PREFILL, Phase.DECODE).astype(np.int8),
        )

    def _request(self, runner: Any, state: Any) -> _Known:
        key = (id(runner), state.request_id)
        known = self._known.get(key)
        if known is None:
            index, label = self._session.new_request(self._place(runner, state.request_id))
            waited = time.perf_counter() - state.created_time
            arrival = max(0.0, time.time() - waited - self._clock_base)
            prompt = state._true_initial_tokens or len(state.initial_tokens)
            known = self._known[key] = _Known(index, label, arrival, prompt, state)
            self._session.put_request(known.request())
        known.state = state
        return known

    def _place(self, runner: Any, request_id: str) -> int | None:
        """Which in order of arrival: the scheduler numbers requests and takes long ones first."""
        first = self._first_of.setdefault(runner, self._session.requests)
        numbered = NUMBERED.fullmatch(request_id)
        return first + int(numbered[1]) if numbered else None

    def _forget_finished(self) -> None:
        for key, known in list(self._known.items()):
            if known.state.status.name in ("FINISHED", "FAILED"):
                self._session.put_request(known.request())
                del self._known[key]

    def _finish(self) -> None:
        try:
            for known in self._known.values():
                self._session.put_request(known.request())
        except Exception as error:
            self._session.fail(error, "ending the recording")
        self._known.clear()


def _read_batch(runner: Any, model: Any, batch_data: Any) -> _Batch:
    """From the arguments of `ModelRunner.compute_batch`, given by position or by name."""
    stream = getattr(runner.inputs_and_outputs, "compute_stream", None)
    return _Batch(runner, _states(runner), batch_data["input_ids"], stream)


def _states(runner: Any) -> list[Any]:
    """The scheduler's records of the requests in this batch, in order of their tokens."""
    io = runner.inputs_and_outputs
    if hasattr(io, "io_pairs"):  # asynchronous: two take turns
        io = io.io_pairs[io.current_pair].host_io
    states: list[Any] = io.requests_in_batch
    return states


def _is_warmup(states: list[Any]) -> bool:
    return bool(states) and states[0].state.request_id.startswith(WARMUP)
