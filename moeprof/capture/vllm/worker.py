"""What a worker of vLLM is told by `moeprof_control`, and what it does around each forward."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from moeprof.capture.failure import logger
from moeprof.capture.live_options import LiveOptions
from moeprof.capture.sink import FAILED
from moeprof.capture.vllm.batch import prompt_length, read_batch
from moeprof.capture.vllm.rank_recording import (
    NOTHING_RECORDED,
    RankRecording,
    Subject,
    status_of,
)
from moeprof.capture.vllm.recent import ANSWER_BYTES
from moeprof.errors import InputError, MoeprofError

if TYPE_CHECKING:
    from moeprof.capture.vllm.buffer import StepBuffer

CLOSE_WAIT_S = 0.2  # the engine may stand still so long when a recording is stopped


class WorkerRecorder:
    """Belongs to one worker. Nothing here raises into the engine.

    `refuse` says why this server cannot be recorded, or gives it what can be.
    """

    def __init__(self) -> None:
        self.steps = 0  # forwards of this worker, those without traffic included
        self._subject: Subject | None = None
        self._buffer: StepBuffer | None = None
        self._refused: str | None = "the model is not loaded yet"
        self._recording: RankRecording | None = None
        self._broken: str | None = None  # an error of ours around a forward

    def provide(self, subject: Subject, buffer: StepBuffer | None) -> None:
        """What this rank records, and where its routers write; no buffer if it has none."""
        self._subject, self._buffer, self._refused = subject, buffer, None

    def refuse(self, why: str) -> None:
        """This rank cannot be recorded."""
        self._refused = why

    def start_from_environment(self) -> None:
        """Record from the start, if the operator says so."""
        try:
            options = LiveOptions.from_environment()
            if options is not None:
                self._start(options)
        except Exception as error:
            self._broken = _one_line(error)
            logger.error("nothing is recorded: %s; the server goes on", self._broken)

    def control(self, action: str, options: Any = None) -> dict[str, Any]:
        """Start, stop, status or recent; the status of this rank, with "error" if it failed."""
        actions: dict[str, Callable[[Any], None]] = {
            "start": lambda given: self._start(LiveOptions.parse(given)),
            "stop": lambda given: self._stop(),
            "status": lambda given: None,
            "recent": lambda given: None,
        }
        try:
            if action not in actions:
                raise InputError(f"'{action}' is not one of {', '.join(actions)}")
            actions[action](options)
            status = self._status()
            return status | self._recent(options) if action == "recent" else status
        except Exception as error:
            return self._status() | {"error": _one_line(error)}

    def before(self, scheduled: Any, dummy: bool) -> None:
        """A forward is about to be asked for; `dummy`: it carries no traffic."""
        try:
            tokens = 0 if scheduled is None else scheduled.total_num_scheduled_tokens
            if dummy or tokens:
                self.steps += 1
            recording = self._recording
            if recording is None or not recording.takes or dummy or self._buffer is None:
                return
            new = (request.req_id for request in scheduled.scheduled_new_reqs)
            recording.begin_step(new, scheduled.finished_req_ids)
            if tokens and not recording.failed:
                self._buffer.clear(tokens)
        except Exception as error:
            self._trip(error)

    def after(self, runner: Any, scheduled: Any) -> None:
        """That forward has been launched."""
        recording, buffer = self._recording, self._buffer
        if recording is None or not recording.takes or buffer is None:
            return
        if not scheduled.total_num_scheduled_tokens:
            return
        try:
            batch = read_batch(runner, scheduled)
            recording.add(
                self.steps - 1,
                batch,
                lambda name: prompt_length(runner, name),
                lambda: buffer.take(batch.total, batch.positions, batch.token_ids),
            )
        except Exception as error:
            self._trip(error)
            recording.lose(scheduled.total_num_scheduled_tokens, FAILED)

    def close(self) -> None:
        """The server ends: the trace is closed complete."""
        try:
            if self._recording is not None:
                self._recording.close()
        except Exception as error:
            self._trip(error)

    def _start(self, options: LiveOptions) -> None:
        if self._refused is not None:
            raise InputError(self._refused)
        assert self._subject is not None
        if not self._subject.rank.writes or self._buffer is None:
            return
        previous = self._recording
        if previous is not None and previous.takes:
            raise InputError(f"{previous.path} is being recorded already: stop it first")
        if previous is not None:
            previous.close(CLOSE_WAIT_S)
            if previous.closing:
                raise InputError(f"{previous.path} is still being closed: try again in a moment")
        self._broken = None
        self._recording = RankRecording(self._subject, options)
        logger.info("recording into %s", self._recording.path)

    def _stop(self) -> None:
        if self._recording is not None:
            self._recording.close(CLOSE_WAIT_S)

    def _trip(self, error: Exception) -> None:
        self._broken = _one_line(error)
        if self._recording is not None:
            self._recording.pipeline.latch.trip(error, "recording a step")

    def _status(self) -> dict[str, Any]:
        status = dict(NOTHING_RECORDED)
        if self._recording is not None:
            status = status_of(self._recording)
        status["error"] = status["error"] or self._broken or self._refused
        return status | self._about()

    def _about(self) -> dict[str, Any]:
        """What does not change while the server runs."""
        subject = self._subject
        if subject is None:
            return {"rank": {"dp": 0, "pp": 0, "tp": 0}, "writes": True, "engine": "vllm"}
        return {
            "rank": subject.rank.place,
            "writes": subject.rank.writes and self._buffer is not None,
            "forwards": self.steps,
            "model": subject.model.name,
            "layers": subject.layers,
            "experts": subject.model.experts,
            "top_k": subject.model.top_k,
            "engine": "vllm",
            "engine_version": subject.engine_version,
            "process": os.getpid(),
        }

    def _recent(self, given: Any) -> dict[str, Any]:
        if given is not None and not isinstance(given, Mapping):
            raise InputError("options of recent must be an object")
        asked = {"after_step": -1, "max_bytes": ANSWER_BYTES} | dict(given or {})
        step, size = asked["after_step"], asked["max_bytes"]
        if type(step) is not int or type(size) is not int or size < 0:
            raise InputError("after_step and max_bytes must be whole numbers")
        if self._recording is None or self._recording.options.aggregate_steps is not None:
            return {"rows": None}
        return {"rows": self._recording.recent.after(step, size, self._recording.writer.manifest)}


def _one_line(error: Exception) -> str:
    if isinstance(error, MoeprofError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]
