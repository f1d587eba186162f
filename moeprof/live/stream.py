"""An Arrow stream that another process appends to, read a whole batch at a time as it grows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from moeprof.errors import TraceError

_END_MARK_BYTES = 8


class GrowingBatch(NamedTuple):
    """A record batch and the bytes that it takes in the file."""

    batch: pa.RecordBatch
    bytes: int


class GrowingStream:
    """Reads on from where it stopped; a batch that is not whole yet comes with a later call.

    The file is held open: when its writer compacts it and swaps the new file in, the old one reads
    on to its end. It is read, not mapped, since a writer may cut back what it failed to append.
    Raises FileNotFoundError where there is no such file, TraceError at columns other than
    `schema`'s.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self._wanted = schema
        self._file = open(path, "rb")  # noqa: SIM115 - as long as the stream is watched
        self._found: pa.Schema | None = None
        self._offset = 0
        self.ended = False  # by its writer, with the end mark

    @property
    def torn(self) -> bool:
        """Whether bytes follow what could be read."""
        return not self.ended and os.fstat(self._file.fileno()).st_size > self._offset

    def batches(self) -> Iterator[GrowingBatch]:
        """Every batch that was appended since and is whole."""
        if os.fstat(self._file.fileno()).st_size <= self._offset:
            return
        while (message := self._next_message()) is not None:
            message, size = message
            if self._found is None:
                self._found = pa.ipc.read_schema(message)
                self._refuse_columns(self._found)
                continue
            batch = pa.ipc.read_record_batch(message, self._found)
            batch.validate()
            yield GrowingBatch(batch.select(self._wanted.names), size)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _next_message(self) -> tuple[pa.ipc.Message, int] | None:
        """The next whole message and its bytes."""
        self._file.seek(self._offset)
        try:
            message = pa.ipc.read_message(self._file)
        except EOFError:
            self.ended = self._file.tell() >= self._offset + _END_MARK_BYTES
            return None
        except (pa.ArrowException, OSError):
            return None  # torn: its rest may come
        size = self._file.tell() - self._offset
        self._offset += size
        return message, size

    def _refuse_columns(self, found: pa.Schema) -> None:
        for field in self._wanted:
            places = found.get_all_field_indices(field.name)
            if len(places) != 1 or not same_type(found.field(places[0]).type, field.type):
                raise TraceError(f"{self.path}: its columns are not those of this trace")


def same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Equal but for the names of list items and what may be null, which writers choose."""
    if not pa.types.is_fixed_size_list(wanted):
        return bool(found.equals(wanted))
    same_list = pa.types.is_fixed_size_list(found) and found.list_size == wanted.list_size
    return bool(same_list and found.value_type.equals(wanted.value_type))
