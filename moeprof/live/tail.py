"""A trace that is being written, or was: the rows of its newest segments as they come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from moeprof.errors import TraceError
from moeprof.live.counts import WindowCounts, windows_of
from moeprof.live.stream import GrowingStream
from moeprof.trace import Phase, TokenRows
from moeprof.trace.columns import check_ids, from_batch
from moeprof.trace.schema import COUNTS, COUNTS_SCHEMA, SEGMENTS, Manifest, segment_number

START_BYTES = 16 << 20  # where to begin in a trace that is large already: so far from its end
POLL_BYTES = 8 << 20  # read at a poll, so that a figure is shown before all of it is read


@dataclass(frozen=True)
class Read:
    """What one poll of a folder brought."""

    rows: list[TokenRows]
    counts: list[WindowCounts]
    behind: bool


class FolderTail:
    """Reads the trace in `folder`. Raises TraceError where there is none.

    `tokens` counts all rows of the trace that are there, read or passed over; `prefill` and
    `decode` those that were read. What is damaged goes to `problem`.
    """

    def __init__(self, folder: Path, *, start_bytes: int = START_BYTES) -> None:
        self.folder = folder
        self.manifest = Manifest.load(folder)
        self.tokens = self.prefill = self.decode = 0
        self.problem = ""
        self._aggregates = self.manifest.aggregate_steps is not None
        self._narrow = self.manifest.model_copy(
            update={"weights": False, "token_ids": False, "margins": False, "next_layer": False}
        )
        self._number = -1  # of the segment that is being read
        self._stream: GrowingStream | None = None
        self._counts: GrowingStream | None = None
        self._skip_bytes = 0
        self._begin(start_bytes)

    def read(self) -> Read:
        """What was written since, a bounded part of it at a time."""
        self.manifest = Manifest.load(
            self.folder
        )  # before the rows: if complete, they are all there
        counts = self._read_counts()
        rows: list[TokenRows] = []
        left = POLL_BYTES
        for batch, size in self._batches():
            if self._aggregates:
                counts += self._counted(windows_of(batch, self.manifest))
            elif (part := self._part(batch, size)) is not None:
                rows.append(part)
                left -= size
            if left <= 0:
                break
        return Read(rows, counts, behind=left <= 0)

    def is_replaced(self) -> bool:
        """Whether another recording now stands where this one was."""
        try:
            return Manifest.load(self.folder).clock_base != self.manifest.clock_base
        except TraceError:  # gone, for the moment at least
            return False

    def last_write_s(self) -> float:
        """Unix time of the last change of any of its files."""
        files = [*self.folder.glob("*"), *(self.folder / SEGMENTS).glob("*")]
        return max((_modified(file) for file in files), default=0.0)

    def written_bytes(self) -> int:
        """What its files take on disk."""
        files = [*self.folder.glob("*"), *(self.folder / SEGMENTS).glob("*")]
        return sum(_size(file) for file in files)

    def close(self) -> None:
        """Let go of its files."""
        for stream in (self._stream, self._counts):
            if stream is not None:
                stream.close()

    def _begin(self, start_bytes: int) -> None:
        """Find the segment to begin in, and count what stands before."""
        if self._aggregates:  # which are small, and whose rows are no tokens
            return
        later = 0
        numbers = self._numbers()
        for number in reversed(numbers):
            later += _size(self._segment(number))
            if later >= start_bytes:
                self._skip_bytes = later - start_bytes
                self._number = number - 1
                break
        self.tokens = sum(self._rows_of(n) for n in numbers if n <= self._number)

    def _rows_of(self, number: int) -> int:
        """Rows of a segment that is passed over; the manifest knows, once it is closed."""
        path = self._segment(number)
        stored = self.manifest.stored(f"{SEGMENTS}/{path.name}")
        if stored is not None:
            return stored.rows
        try:
            stream = GrowingStream(path, self._narrow.segment_schema)
        except FileNotFoundError:  # let go in between
            return 0
        try:
            return sum(batch.num_rows for batch, _ in stream.batches())
        finally:
            stream.close()

    def _batches(self) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Batches in order, over the ends of segments, up to the last whole one."""
        while True:
            follows = self._next_number()  # before the look: behind it nothing more comes here
            if self._stream is not None:
                yield from self._stream.batches()
            if follows is None:
                return
            self._open(follows)

    def _open(self, number: int) -> None:
        if self._stream is not None:
            if self._stream.torn:
                self.problem = f"{self._stream.path.name}: the end cannot be read"
            self._stream.close()
            self._stream = None
        try:
            self._stream = GrowingStream(self._segment(number), self._narrow.segment_schema)
        except FileNotFoundError:  # let go to make room, before it could be read
            self.problem = "segments were let go faster than they could be read"
        self._number = number

    def _part(self, batch: pa.RecordBatch, size: int) -> TokenRows | None:
        """The rows of `batch`; None of one that is passed over."""
        self.tokens += batch.num_rows
        if self._skip_bytes > 0:
            self._skip_bytes -= size
            return None
        if not batch.num_rows or any(batch.column(i).null_count for i in range(3)):
            return None
        rows = from_batch(batch, self._narrow)
        try:
            check_ids(rows, self._narrow)
        except TraceError as error:
            self.problem = str(error)
            return None
        assert rows.phase is not None
        prefill = int(np.count_nonzero(rows.phase == Phase.PREFILL))
        self.prefill += prefill
        self.decode += len(rows) - prefill
        return rows

    def _numbers(self) -> list[int]:
        """Segments that are there, in order; a writer may be letting go the oldest."""
        found = (segment_number(path.name) for path in (self.folder / SEGMENTS).glob("*.arrows"))
        return sorted(number for number in found if number >= self.manifest.first_segment)

    def _next_number(self) -> int | None:
        return next((number for number in self._numbers() if number > self._number), None)

    def _segment(self, number: int) -> Path:
        return self.folder / SEGMENTS / f"{number:06d}.arrows"

    def _read_counts(self) -> list[WindowCounts]:
        """Every window of the file of counts that was written since."""
        if self._counts is None:
            try:
                self._counts = GrowingStream(self.folder / COUNTS, COUNTS_SCHEMA)
            except FileNotFoundError:
                return []
        batches = [batch for batch, _ in self._counts.batches()]
        return self._counted([w for batch in batches for w in windows_of(batch, self.manifest)])

    def _counted(self, windows: list[WindowCounts]) -> list[WindowCounts]:
        for window in windows:
            self.tokens += window.tokens
            self.prefill += window.prefill_tokens
            self.decode += window.tokens - window.prefill_tokens
        return windows


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
