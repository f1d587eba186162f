"""What a writer holds until the next flush: rows as they came, or counts of whole windows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeprof.trace.columns import concat_rows, to_batch
from moeprof.trace.rows import TokenRows
from moeprof.trace.schema import AGGREGATE_SCHEMA, Manifest

_PHASES = 3  # unknown, prefill, decode: Phase + 1
_CHUNK_ROWS = 4096  # that are counted at once: a few megabytes of places


class HeldRows:
    """Rows of a recording of tokens. `rows` of them go to disk with the next `take`."""

    def __init__(self, manifest: Manifest) -> None:
        self.rows = 0
        self._manifest = manifest
        self._parts: list[TokenRows] = []

    def most(self, rows: TokenRows) -> int:
        """The most rows on disk that what is held takes once `rows` are added."""
        return self.rows + len(rows)

    def add(self, rows: TokenRows) -> None:
        """Hold `rows`, too."""
        self._parts.append(rows)
        self.rows += len(rows)

    def finish(self) -> None:
        """Nothing more will come."""

    def take(self) -> tuple[int, Callable[[], pa.RecordBatch]]:
        """Give up what is held: how many tokens, and what makes a batch of them."""
        parts, tokens = self._parts, self.rows
        self._parts, self.rows = [], 0
        return tokens, lambda: to_batch(concat_rows(parts), self._manifest)


class HeldWindows:
    """Counts by phase, layer and expert of the window of steps that is open, and of whole ones.

    Window w is of the steps from w * `aggregate_steps` on. Memory is that of one window, of every
    phase, layer and expert, whatever comes; `rows` are those of whole windows.
    """

    def __init__(self, manifest: Manifest) -> None:
        assert manifest.aggregate_steps is not None
        self.rows = 0
        self._steps = manifest.aggregate_steps
        self._layers = np.array(manifest.layers, np.int32)
        self._shape = (_PHASES, len(manifest.layers), manifest.experts)
        self._top_k = manifest.top_k
        places = len(manifest.layers) * manifest.experts
        narrow = np.uint16 if places <= 1 << 16 else np.uint32
        offsets = np.arange(0, places, manifest.experts)[:, None]  # [L, 1]
        self._offsets: NDArray[np.unsignedinteger] = offsets.astype(narrow)
        self._window = 0
        self._counts = np.zeros(self._shape, np.int64)
        self._open_tokens = 0
        self._whole: list[pa.RecordBatch] = []
        self._whole_tokens = 0

    def most(self, rows: TokenRows) -> int:
        """The most rows on disk that what is held takes once `rows` are added."""
        windows = 2 + int(rows.step[-1]) // self._steps - int(rows.step[0]) // self._steps
        _, layers, _ = self._shape
        new = min(len(rows) * layers * self._top_k, windows * self._counts.size)
        return self.rows + int(np.count_nonzero(self._counts)) + new

    def add(self, rows: TokenRows) -> None:
        """Count `rows`; a window is whole once a row of a later one comes."""
        window = rows.step // self._steps
        starts = np.flatnonzero(np.diff(window, prepend=window[0] - 1))
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            if window[start] != self._window:
                self.finish()
                self._window = int(window[start])
            for first in range(start, stop, _CHUNK_ROWS):
                self._count(rows.select(slice(first, min(first + _CHUNK_ROWS, stop))))
            self._open_tokens += int(stop - start)

    def put(self, batch: pa.RecordBatch, tokens: int) -> None:
        """Hold counts of whole windows that were made elsewhere."""
        self._whole.append(batch)
        self._whole_tokens += tokens
        self.rows += batch.num_rows

    def finish(self) -> None:
        """The open window is whole; its rows are in order, whatever order its tokens came in."""
        phase, layer, expert = np.nonzero(self._counts)
        tokens = self._counts[phase, layer, expert]
        columns = [
            pa.array(np.full(len(tokens), self._window, np.int64)),
            pa.array(self._layers[layer]),
            pa.array(expert.astype(np.int32)),
            pa.array(tokens),
            pa.array((phase - 1).astype(np.int8), mask=phase == 0),
        ]
        if self._open_tokens:
            batch = pa.RecordBatch.from_arrays(columns, schema=AGGREGATE_SCHEMA)
            self.put(batch, self._open_tokens)
        self._counts[:] = 0
        self._open_tokens = 0

    def take(self) -> tuple[int, Callable[[], pa.RecordBatch]]:
        """Give up the whole windows: how many tokens, and what makes a batch of them."""
        whole, tokens = self._whole, self._whole_tokens
        self._whole, self._whole_tokens, self.rows = [], 0, 0
        return tokens, partial(pa.concat_batches, whole)

    def _count(self, rows: TokenRows) -> None:
        """Add the assignments of `rows`, phase by phase."""
        place = rows.experts + self._offsets  # [T, L, k] of one phase's counts
        phases = np.full(len(rows), -1, np.int8) if rows.phase is None else rows.phase
        for phase in np.unique(phases).tolist():
            mask = phases == phase
            part = place if mask.all() else place[mask]
            if rows.recorded is not None:
                part = part[rows.recorded[mask]]
            flat = part.reshape(-1).astype(np.intp)
            counts = np.bincount(flat, minlength=self._counts[0].size)
            self._counts[phase + 1] += counts.reshape(self._shape[1:])
