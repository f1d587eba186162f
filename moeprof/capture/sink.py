"""The end of the way, whatever the engine: rows go into the trace, and everything is counted."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np

from moeprof.capture.failure import FailureLatch, logger
from moeprof.capture.recording import Counts
from moeprof.capture.sampling import RequestSampler
from moeprof.trace import Phase, Request, TelemetrySample, TokenRows, TraceWriter, open_trace
from moeprof.trace.writer import SIZE_LIMIT

FAILED = "recording failed"
BEHIND = "the writer fell behind"


class TraceSink:
    """Writes to a trace from the writer thread, and never raises.

    After a failure it writes nothing more, and still counts what it is handed; after `end` it
    does neither. `sampler` chooses the requests that are written, all without one.
    """

    def __init__(
        self, writer: TraceWriter, latch: FailureLatch, sampler: RequestSampler | None = None
    ) -> None:
        self.counts = Counts()
        self.clock_base = writer.clock_base
        self._writer = writer
        self._latch = latch
        self._sampler = sampler
        self._requests = 0  # seen so far, whether or not they are kept

    def write(self, rows: TokenRows) -> None:
        """Add token rows."""
        if self._latch.ended or not len(rows):
            return
        rows = self._sample(rows)
        if self._latch.tripped:
            self.drop(len(rows), FAILED)
        elif self._take(rows):
            decode = 0 if rows.phase is None else int(np.count_nonzero(rows.phase == Phase.DECODE))
            self.counts.by_phase[Phase.DECODE] += decode
            self.counts.by_phase[Phase.PREFILL] += len(rows) - decode

    def drop(self, tokens: int, reason: str) -> None:
        """Count tokens that were seen and are not recorded."""
        if tokens and not self._latch.ended:
            self.counts.dropped[reason] += tokens
            self._guarded(lambda: self._writer.drop(tokens, reason))

    def put_requests(self, requests: list[Request]) -> None:
        """Add or replace what is known of requests."""
        if self._latch.tripped or not requests:
            return
        indices = np.array([request.index for request in requests])
        self._note_requests(int(indices.max()))
        kept = self._sampler.keeps(indices) if self._sampler else np.ones(len(indices), bool)
        for request, keep in zip(requests, kept, strict=True):
            if keep:
                self._guarded(partial(self._writer.put_request, request))

    def put_telemetry(self, sample: TelemetrySample) -> None:
        """Add a sample."""
        if not self._latch.tripped:
            self._guarded(lambda: self._writer.put_telemetry(sample))

    def tick(self) -> None:
        """Let the writer flush what has waited."""
        if not self._latch.tripped:
            self._guarded(self._writer.tick)

    def end(self) -> None:
        """The recording's time is over: close the trace; what comes now does not belong to it."""
        if not self._latch.ended:
            self.close()
            self._latch.end()

    def close(self) -> None:
        """Close the trace and settle the counts."""
        if self._latch.ended:
            return
        self._guarded(self._writer.close)
        self.counts.rotated = self._writer.manifest.rotated_tokens
        if self._latch.tripped or self.counts.rotated:
            with contextlib.suppress(Exception):
                self._recount()

    def _take(self, rows: TokenRows) -> bool:
        """Whether the writer took the rows; it has counted them if it is full."""
        full = self._writer.full
        if self._guarded(lambda: self._writer.write(rows)):
            return True
        if self._latch.tripped:
            return True  # the writer counts what it loses; `_recount` will see
        self.counts.dropped[SIZE_LIMIT] += len(rows)
        if not full and self._writer.full:
            logger.warning("the trace has reached its size limit; the model goes on unrecorded")
        return False

    def _sample(self, rows: TokenRows) -> TokenRows:
        if self._sampler is None:
            return rows
        self._note_requests(int(rows.request.max()))
        kept = self._sampler.sample(rows)
        left_out = len(rows) - len(kept)
        if left_out:
            self.counts.sampled_out += left_out
            self._guarded(lambda: self._writer.leave_out(left_out))
        return kept

    def _note_requests(self, highest: int) -> None:
        """Requests are numbered in order, so those up to `highest` have been seen."""
        if self._sampler is None or highest < self._requests:
            return
        new = self._sampler.keeps(np.arange(self._requests, highest + 1))
        self._requests = highest + 1
        left_out = int(np.count_nonzero(~new))
        self._guarded(lambda: self._writer.leave_out(0, left_out))

    def _guarded(self, action: Callable[[], object]) -> object:
        """What `action` returns; None if it failed."""
        try:
            return action()
        except Exception as error:
            self._latch.trip(error, "writing the trace")
            return None

    def _recount(self) -> None:
        """After a failure or rotation, what can be read back is what was recorded.

        What a failure lost was dropped.
        """
        found = open_trace(self._writer.path).tokens_by_phase
        before = self.counts.recorded
        self.counts.by_phase = Counter({p: found.get(p, 0) for p in (Phase.PREFILL, Phase.DECODE)})
        lost = before - self.counts.recorded - self.counts.rotated
        if lost:
            self.counts.dropped[FAILED] += lost
