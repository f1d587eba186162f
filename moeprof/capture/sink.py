"""The end of the way, whatever the engine: rows go into the trace, and everything is counted."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable

import numpy as np

from moeprof.capture.failure import FailureLatch
from moeprof.capture.recording import Counts
from moeprof.trace import Phase, Request, TelemetrySample, TokenRows, TraceWriter, open_trace

FAILED = "recording failed"
BEHIND = "the writer fell behind"


class TraceSink:
    """Writes to a trace from the writer thread, and never raises.

    After a failure it writes nothing more, and still counts what it is handed.
    """

    def __init__(self, writer: TraceWriter, latch: FailureLatch) -> None:
        self.counts = Counts()
        self.clock_base = writer.clock_base
        self._writer = writer
        self._latch = latch

    def write(self, rows: TokenRows) -> None:
        """Add token rows."""
        if self._latch.tripped:
            self.drop(len(rows), FAILED)
            return
        # The writer counts what it loses; `_recount` will see.
        self._guarded(lambda: self._writer.write(rows))
        decode = 0 if rows.phase is None else int(np.count_nonzero(rows.phase == Phase.DECODE))
        self.counts.by_phase[Phase.DECODE] += decode
        self.counts.by_phase[Phase.PREFILL] += len(rows) - decode

    def drop(self, tokens: int, reason: str) -> None:
        """Count tokens that were seen and are not recorded."""
        if tokens:
            self.counts.dropped[reason] += tokens
            self._guarded(lambda: self._writer.drop(tokens, reason))

    def put_requests(self, requests: list[Request]) -> None:
        """Add or replace what is known of requests."""
        for request in requests if not self._latch.tripped else ():
            self._guarded(lambda request=request: self._writer.put_request(request))

    def put_telemetry(self, sample: TelemetrySample) -> None:
        """Add a sample."""
        if not self._latch.tripped:
            self._guarded(lambda: self._writer.put_telemetry(sample))

    def tick(self) -> None:
        """Let the writer flush what has waited."""
        if not self._latch.tripped:
            self._guarded(self._writer.tick)

    def close(self) -> None:
        """Close the trace and settle the counts."""
        self._guarded(self._writer.close)
        if self._latch.tripped:
            with contextlib.suppress(Exception):
                self._recount()

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._latch.trip(error, "writing the trace")

    def _recount(self) -> None:
        """After a failure, what can be read back is what was recorded; the rest was dropped."""
        phase = open_trace(self._writer.path).phase
        before = self.counts.recorded
        self.counts.by_phase = Counter(
            {p: int(np.count_nonzero(phase == p)) for p in (Phase.PREFILL, Phase.DECODE)}
        )
        self.counts.dropped[FAILED] += before - self.counts.recorded
