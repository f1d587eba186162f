"""The newest rows of a recording, for whoever watches it."""

from __future__ import annotations

import base64
import threading
from collections import deque
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa

from moeprof.trace import TokenRows
from moeprof.trace.columns import concat_rows, to_batch
from moeprof.trace.schema import Manifest, expert_dtype

KEPT_BYTES = 4 << 20
ANSWER_BYTES = 1 << 20  # where the watcher does not say
ROW_BYTES = 18  # of a row beside its experts


class RecentRows:
    """The last steps, up to `kept_bytes` of their experts, without token ids.

    The writer thread adds, whoever answers a watcher reads.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._limit = kept_bytes
        self._bytes = 0
        self._parts: deque[TokenRows] = deque()
        self._lock = threading.Lock()

    def add(self, rows: TokenRows) -> None:
        """Rows of one step or more; the oldest make room."""
        rows = replace(rows, token_id=None)
        with self._lock:
            self._parts.append(rows)
            self._bytes += rows.experts.nbytes
            while self._bytes > self._limit:
                self._bytes -= self._parts.popleft().experts.nbytes

    def after(self, step: int, max_bytes: int, manifest: Manifest) -> str:
        """Base64 of an Arrow IPC stream of the newest steps behind `step`, about `max_bytes` of it.

        A step is whole or not there. Empty of batches if there are none.
        """
        told = manifest.model_copy(update={"token_ids": False})
        row_bytes = len(told.layers) * told.top_k * expert_dtype(told.experts).itemsize + ROW_BYTES
        rows = self._newest(step, max_bytes * 3 // 4 // row_bytes)  # base64 takes a third more
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, told.segment_schema) as stream:
            if rows is not None:
                stream.write_batch(to_batch(rows, told))
        return base64.b64encode(sink.getvalue()).decode()

    def _newest(self, step: int, max_rows: int) -> TokenRows | None:
        """At most `max_rows` of the steps behind `step`, whole ones, None if there are none."""
        with self._lock:
            parts = list(self._parts)
        taken: list[TokenRows] = []
        while parts and sum(map(len, taken)) < max_rows and int(parts[-1].step[-1]) > step:
            taken.append(parts.pop())
        if not taken:
            return None
        rows = concat_rows(taken[::-1])
        first = int(np.searchsorted(rows.step, step, side="right"))
        if len(rows) - first > max_rows:
            first = len(rows) - max_rows
            if first and rows.step[first - 1] == rows.step[first]:
                first = int(np.searchsorted(rows.step, rows.step[first], side="right"))
        return None if first == len(rows) else _from(rows, first)


def _from(rows: TokenRows, first: int) -> TokenRows:
    given = ((f.name, getattr(rows, f.name)) for f in fields(rows))
    return replace(rows, **{n: array[first:] for n, array in given if array is not None})
