"""The small files beside the segments: rows that come one at a time, requests and telemetry."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from moeprof.errors import TraceError
from moeprof.trace.streams import StreamWriter, first_line, resume

_END_BYTES = 16  # a stream ends with a mark
_MANY_BATCHES = 16  # so many are worth rewriting: a batch of one row costs half a kilobyte


class SideFile:
    """One such file. Rows wait for the next flush, and wait on where it fails.

    With `max_bytes` it grows no further: with `newest` the older half then makes room, without
    it takes no more and is `full`.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, *, max_bytes: int | None = None, newest: bool = False
    ) -> None:
        self.stream: StreamWriter | None = None
        self.full = False
        self._path = path
        self._schema = schema
        self._max_bytes = max_bytes
        self._newest = newest
        self._waiting: dict[int, pa.RecordBatch] = {}

    @property
    def waiting(self) -> bool:
        """Whether there are rows that are not on disk yet."""
        return bool(self._waiting)

    def put(self, row: dict[str, object], index: int | None = None) -> None:
        """Hold one row, in place of the one held with the same `index`.

        Raises TraceError on values that its columns cannot hold.
        """
        try:
            batch = pa.RecordBatch.from_pylist([row], schema=self._schema)
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise TraceError(f"{self._path.name} cannot hold {row}: {first_line(error)}") from None
        for field, column in zip(self._schema, batch.columns, strict=True):
            if column.null_count and not field.nullable:
                raise TraceError(f"{self._path.name} cannot hold {row}: {field.name} is missing")
        self._waiting[len(self._waiting) if index is None else index] = batch

    def flush(self) -> None:
        """Append what waits."""
        if not self._waiting:
            return
        batch = pa.concat_batches(list(self._waiting.values()))
        if self.stream is None:
            self.stream = StreamWriter(self._path, self._schema)
        elif self.stream.failed:
            self.stream = resume(self.stream)
        if self._max_bytes is not None:
            self.stream, batch = self._within(self._max_bytes, self.stream, batch)
        if batch.num_rows:
            self.stream.append(batch)
        self._waiting.clear()

    def _within(
        self, limit: int, stream: StreamWriter, batch: pa.RecordBatch
    ) -> tuple[StreamWriter, pa.RecordBatch]:
        """The stream with room for the rows of `batch` that are to be written, and those rows."""
        size = pa.ipc.get_record_batch_size(batch) + _END_BYTES
        if not self.full and stream.bytes + size <= limit:
            return stream, batch
        if self._newest:
            kept = batch.num_rows * (limit // 2) // size
            newest = batch.slice(max(0, batch.num_rows - kept))
            return _rewritten(stream, newest_bytes=limit // 4), newest
        if stream.batches >= _MANY_BATCHES:
            stream = self.stream = _rewritten(stream)
            if stream.bytes + size <= limit:
                return stream, batch
        self.full = True
        return stream, batch.slice(0, 0)


def _rewritten(stream: StreamWriter, newest_bytes: int | None = None) -> StreamWriter:
    """The rows of `stream`, or the newest of them, in one batch; `stream` takes no more."""
    stream.close()
    stream.failed = True  # if the new file cannot be written, the next flush tries again
    return resume(stream, newest_bytes=newest_bytes)
