"""The files of a trace being written: rows go to one segment, full ones are sealed on a thread."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from moeprof.trace.schema import SEGMENTS, StoredFile, segment_file, segment_number
from moeprof.trace.streams import COMPACT_ROWS, StreamWriter, seal


class Sealer:
    """Compacts, checksums and swaps in closed files, one after the other on its own thread."""

    def __init__(self, folder: Path, compression: str | None) -> None:
        self._folder = folder
        self._compression = compression
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="moeprof-seal")
        self._sealing: list[Future[StoredFile]] = []

    def submit(self, stream: StreamWriter) -> Future[StoredFile]:
        """Close `stream` and seal it."""
        stream.close()
        compact = stream.batches > 1 + stream.rows // COMPACT_ROWS
        sealing = self._thread.submit(
            seal, self._folder, stream, compact=compact, compression=self._compression
        )
        self._sealing.append(sealing)
        return sealing

    def sum_up(self, stream: StreamWriter) -> None:
        """Take what was written into the checksum, while the next batch is being made."""
        self._thread.submit(stream.sum_up)

    def take(self) -> tuple[list[StoredFile], list[Exception]]:
        """The files that were sealed since the last call, and why others could not be."""
        done = [future for future in self._sealing if future.done()]
        self._sealing = [future for future in self._sealing if future not in done]
        errors = [error for future in done if isinstance(error := future.exception(), Exception)]
        return [future.result() for future in done if not future.exception()], errors

    def forget(self, sealing: Future[StoredFile]) -> None:
        """Wait for a file that is to be removed, and never return it."""
        wait([sealing])
        if sealing in self._sealing:
            self._sealing.remove(sealing)

    def shutdown(self) -> None:
        """Seal what waits, and end the thread."""
        self._thread.shutdown()


class EndedSegment(NamedTuple):
    """A segment that takes no more rows."""

    number: int
    tokens: int  # that its rows are of
    bytes: int  # before it is compacted
    sealing: Future[StoredFile]


class Segments:
    """All segments of one trace. After a failed append the next one starts another segment."""

    def __init__(self, folder: Path, schema: pa.Schema, sealer: Sealer, max_bytes: int) -> None:
        self._folder = folder
        self._schema = schema
        self._sealer = sealer
        self._max_bytes = max_bytes
        self._number = 0  # of the next segment
        self._open: StreamWriter | None = None
        self._open_tokens = 0
        self._ended: deque[EndedSegment] = deque()  # from the oldest that is kept

    def __bool__(self) -> bool:
        return self._open is not None or bool(self._ended)

    @property
    def rewritten_bytes(self) -> int:
        """The most that compacting one of them may still take."""
        unsealed = [ended.bytes for ended in self._ended if not ended.sealing.done()]
        return max([*unsealed, self._open.bytes if self._open else 0])

    def append(self, batch: pa.RecordBatch, tokens: int) -> None:
        """Write one batch of `tokens` tokens; it is in the file when this returns."""
        try:
            segment = self._open = self._open or self._start()
            segment.append(batch)
            self._open_tokens += tokens
        except BaseException:
            self.end()  # a whole prefix
            raise
        if segment.bytes >= self._max_bytes:
            self.end()
        elif batch.num_rows >= COMPACT_ROWS:
            self._sealer.sum_up(segment)

    def _start(self) -> StreamWriter:
        stream = StreamWriter(self._folder / segment_file(self._number), self._schema)
        self._number += 1
        return stream

    def end(self) -> None:
        """Seal the open segment."""
        if self._open is not None:
            segment, self._open = self._open, None
            sealing = self._sealer.submit(segment)
            ended = EndedSegment(self._number - 1, self._open_tokens, segment.bytes, sealing)
            self._open_tokens = 0
            self._ended.append(ended)

    def let_go_oldest(self) -> EndedSegment:
        """Take the oldest segment, the open one if there is no other, out of the trace.

        Its file is there until `remove_up_to`, which is for when the manifest does not list it.
        """
        if not self._ended:
            self.end()
        self._sealer.forget(self._ended[0].sealing)
        return self._ended.popleft()

    def remove_up_to(self, number: int) -> None:
        """Remove the files of all segments up to `number`."""
        for path in (self._folder / SEGMENTS).glob("*.arrows"):
            if 0 <= segment_number(path.name) <= number:
                path.unlink()
