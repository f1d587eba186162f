"""One rank's recording, from its start to its end, as the engine's thread sees it."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from moeprof.capture.drain import ITEM_BYTES
from moeprof.capture.failure import logger
from moeprof.capture.live_options import LiveOptions
from moeprof.capture.naming import request_key, request_name
from moeprof.capture.pipeline import MAX_PENDING_BYTES, Pipeline, open_pipeline
from moeprof.capture.routing import Routing
from moeprof.capture.sink import BEHIND, FAILED
from moeprof.capture.vllm.batch import Batch
from moeprof.capture.vllm.handler import StepHandler
from moeprof.capture.vllm.ranks import Rank
from moeprof.capture.vllm.recent import RecentRows
from moeprof.capture.vllm.steps import Ended, Lost, Started, Step
from moeprof.model import MoEModel
from moeprof.trace import TraceWriter

# vLLM adds eight random digits to the id that a client knows (vllm/v1/engine/input_processor.py).
_RANDOM_SUFFIX = re.compile(r"-[0-9a-f]{8}$")


@dataclass(frozen=True)
class Subject:
    """What a rank records: part of a model, in an engine."""

    rank: Rank
    model: MoEModel
    layers: list[int]  # native ones that this rank has
    engine_version: str
    speculative: bool


class RankRecording:
    """Takes steps from the engine's thread and never blocks it.

    Raises InputError if the output cannot be written; what fails later ends the recording alone.
    """

    def __init__(self, subject: Subject, options: LiveOptions) -> None:
        self.options = options
        self.path = subject.rank.path(options.path)
        self.recent = RecentRows()
        self.steps = 0  # with traffic
        self.started_at = time.monotonic()
        self.ended_at: float | None = None
        self._subject = subject
        self._key = request_key()
        self._names = "none" if options.aggregate_steps else options.request_names
        self._numbers: dict[str, tuple[int, int]] = {}  # of running requests: number, prompt length
        self._seen = 0  # requests so far
        self._arriving: frozenset[str] = frozenset()
        self._unsent: Counter[str] = Counter()
        self._warned: set[str] = set()
        self._closing: threading.Thread | None = None
        self._stack = ExitStack()
        self.pipeline = self._open()
        self.pipeline.recording.count_unsent(lambda: sum(self._unsent.values()))

    @property
    def takes(self) -> bool:
        """Whether steps are still wanted."""
        return self._closing is None and not self.pipeline.latch.ended

    @property
    def failed(self) -> bool:
        """Whether it has stopped before its end: steps are counted, and not copied."""
        return self.pipeline.latch.tripped

    @property
    def closing(self) -> bool:
        """Whether what was written is being sealed."""
        return self._closing is not None and self._closing.is_alive()

    @property
    def seconds(self) -> float:
        """How long it has run."""
        until = time.monotonic() if self.ended_at is None else self.ended_at
        if self.options.duration_s is not None:
            return min(until - self.started_at, self.options.duration_s)
        return until - self.started_at

    def begin_step(self, new: Iterable[str], finished: Iterable[str]) -> None:
        """Requests that arrive in the step to come, and those that ended before it."""
        for name in finished:
            known = self._numbers.pop(name, None)
            if known is not None:
                self.pipeline.drain.offer(Ended(known[0]))
        self._arriving = frozenset(new)

    def add(
        self,
        number: int,
        batch: Batch,
        prompt_of: Callable[[str], int],
        take: Callable[[], Routing],
    ) -> None:
        """The step that has just run. `take` starts the copy of its rows."""
        known = [self._numbers.get(name) or self._start(name, prompt_of) for name in batch.ids]
        self.steps += 1
        if self.failed:
            self.lose(batch.total, FAILED)
            return
        numbers = np.array(known, np.int32).reshape(-1, 2)
        step = Step(number, numbers[:, 0], numbers[:, 1], batch.tokens, take())
        in_order = self._send_lost()
        size = step.nbytes + ITEM_BYTES
        if not in_order or not self.pipeline.drain.offer(
            step, size, reserve=MAX_PENDING_BYTES // 8
        ):
            self.lose(batch.total, BEHIND)

    def close(self, wait_s: float | None = None) -> None:
        """End it in a thread of its own: sealing what was written takes a moment.

        Waits for that up to `wait_s`, None: until it is done.
        """
        if self._closing is None:
            self.ended_at = time.monotonic()
            self._send_lost()
            self._closing = threading.Thread(target=self._close, name="moeprof-closing")
            try:
                self._closing.start()
            except RuntimeError:  # the interpreter ends
                self._close()
                return
        self._closing.join(wait_s)

    def _open(self) -> Pipeline:
        subject, options = self._subject, self.options
        limits = options.limits(subject.rank.writers)
        subject.rank.check(options.path)
        return self._stack.enter_context(
            open_pipeline(
                self._open_writer,
                self.path,
                lambda sink, latch: StepHandler(
                    sink,
                    latch,
                    self.recent,
                    token_ids=options.token_ids,
                    shared=subject.rank.sequence_parallel,
                    speculative=subject.speculative,
                ),
                labels=None,
                max_pending_bytes=MAX_PENDING_BYTES,
                limits=limits,
            )
        )

    def _open_writer(self) -> TraceWriter:
        subject, options = self._subject, self.options
        limits = options.limits(subject.rank.writers)
        self.writer = TraceWriter(
            self.path,
            subject.model,
            layers=subject.layers,
            engine="vllm",
            engine_version=subject.engine_version,
            token_ids=options.token_ids,
            force=options.force,
            max_bytes=limits.max_bytes,
            rotate=limits.rotate,
            sampling=limits.sampling,
            request_names=self._names,
            aggregate_steps=options.aggregate_steps,
            ranks=subject.rank.beside if subject.rank.writers > 1 else None,
        )
        return self.writer

    def _start(self, name: str, prompt_of: Callable[[str], int]) -> tuple[int, int]:
        """Number a request that is seen for the first time."""
        known = self._numbers[name] = (self._seen, prompt_of(name))
        self._seen += 1
        arrival = None
        if name in self._arriving:
            arrival = max(0.0, time.time() - self.pipeline.clock_base)
        told = request_name(_RANDOM_SUFFIX.sub("", name), self._names, self._key)
        self.pipeline.drain.offer(Started(known[0], arrival, known[1], told))
        return known

    def lose(self, tokens: int, reason: str) -> None:
        """Count tokens of which nothing else is kept."""
        if reason not in self._warned:
            self._warned.add(reason)
            logger.warning("tokens are not being recorded: %s; they are counted as dropped", reason)
        self._unsent[reason] += tokens

    def _send_lost(self) -> bool:
        """Tell the writer thread of what was lost, before any later step. False if it must wait."""
        for reason, tokens in list(self._unsent.items()):
            if not self.pipeline.drain.offer(Lost(tokens, reason), ITEM_BYTES):
                return False
            del self._unsent[reason]
        return True

    def _close(self) -> None:
        try:
            self._stack.close()
        except Exception as error:
            self.pipeline.latch.trip(error, "ending the recording")


def status_of(recording: RankRecording) -> dict[str, Any]:
    """What a rank says of its recording, open or closed."""
    counts = recording.pipeline.recording
    return {
        "recording": recording.takes and not recording.failed,
        "closing": recording.closing,
        "path": str(recording.path),
        "tokens": counts.tokens,
        "prefill_tokens": counts.prefill_tokens,
        "decode_tokens": counts.decode_tokens,
        "steps": recording.steps,
        "dropped": counts.drop_reasons,
        "sampled_out": counts.sampled_out,
        "rotated": counts.rotated,
        "pending_bytes": recording.pipeline.drain.pending_bytes,
        "seconds": round(recording.seconds, 3),
        "error": counts.error,
    }


NOTHING_RECORDED: dict[str, Any] = {
    "recording": False,
    "closing": False,
    "path": None,
    "tokens": 0,
    "prefill_tokens": 0,
    "decode_tokens": 0,
    "steps": 0,
    "dropped": {},
    "sampled_out": 0,
    "rotated": 0,
    "pending_bytes": 0,
    "seconds": 0.0,
    "error": None,
}
