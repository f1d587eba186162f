"""Arrow streams on disk that survive a crash: appended whole, read up to the last whole batch."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from moeprof.errors import MoeprofError, TraceError
from moeprof.trace.schema import FILE_MODE, Manifest, StoredFile

_READ_BYTES = 1 << 20
COMPACT_ROWS = 65_536  # a batch costs 11 KB of metadata for M3's 57 columns


class TraceWriteError(MoeprofError, OSError):
    """A recording could not be written: which path, and the system's reason."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def writing_error(path: Path, error: Exception) -> Exception:
    """`error` as one line that names `path`, if it came from the disk or from Arrow."""
    if isinstance(error, MoeprofError):
        return error
    if isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno else first_line(error)
        return TraceWriteError(error.errno, reason, str(path))
    if isinstance(error, pa.ArrowException):
        return MoeprofError(f"{path}: {first_line(error)}")
    return error


def first_line(error: BaseException) -> str:
    """What `error` says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class StreamWriter:
    """Appends record batches to one file. What `append` returned from, `kill -9` cannot lose.

    After a failed append the file is a whole stream up to the batch before, and takes no more.
    """

    def __init__(self, path: Path, schema: pa.Schema, compression: str | None = None) -> None:
        self.path = path
        self.schema = schema
        self.rows = 0
        self.batches = 0
        self.failed = False
        self._checksum = Checksum(path)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE))
        self._sink = pa.OSFile(str(path), "wb")
        options = pa.ipc.IpcWriteOptions(compression=compression)
        self._stream = pa.ipc.new_stream(self._sink, schema, options=options)
        self.bytes = self._sink.tell()

    def append(self, batch: pa.RecordBatch) -> None:
        """Write one batch; on failure the file is cut back to the batch before it."""
        if self.failed:
            raise TraceError(f"{self.path}: takes no more rows, an earlier write failed")
        try:
            self._stream.write_batch(batch)
        except BaseException:
            self._cut_back()
            raise
        self.rows += batch.num_rows
        self.batches += 1
        self.bytes = self._sink.tell()

    def _cut_back(self) -> None:
        """The sink's offset stays behind the cut: another write would follow a hole of zeros."""
        self.failed = True
        with contextlib.suppress(OSError):
            os.truncate(self.path, self.bytes)

    def move(self, path: Path) -> None:
        """Take the place of `path` in one step; a reader sees the old file or this one."""
        os.replace(self.path, path)
        self.path = self._checksum.path = path

    def sum_up(self) -> None:
        """Take what has been written since into the checksum; another thread may do it."""
        self._checksum.advance(self.bytes)

    def close(self) -> None:
        """End the stream and close the file."""
        if not self.failed:
            try:
                self._stream.close()
                self.bytes = self._sink.tell()
            except (OSError, pa.ArrowException):
                self._cut_back()  # the end mark is for show: every row is there without it
        self._sink.close()

    def stored(self, root: Path) -> StoredFile:
        """The manifest's entry for this stream, once closed."""
        self.sum_up()
        return StoredFile(
            file=self.path.relative_to(root).as_posix(),
            rows=self.rows,
            bytes=self.bytes,
            crc32=self._checksum.hexdigest(),
        )


class Checksum:
    """CRC-32 of a growing file: finds damage at 4 GB/s, where SHA-256's 1.4 would slow writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._value = 0
        self._done = 0

    def advance(self, stop: int) -> None:
        """Read on up to byte `stop`."""
        with open(self.path, "rb") as stored:
            stored.seek(self._done)
            while self._done < stop and (block := stored.read(min(_READ_BYTES, stop - self._done))):
                self._value = zlib.crc32(block, self._value)
                self._done += len(block)

    def hexdigest(self) -> str:
        """Eight hexadecimal digits."""
        return f"{self._value:08x}"


def seal(
    root: Path, stream: StreamWriter, *, compact: bool = False, compression: str | None = None
) -> StoredFile:
    """Compact a closed stream if asked, swap it in atomically, and describe what now stands.

    A failure to compact costs space and nothing else, so the file then stays as it was written.
    """
    if (compact or compression) and stream.rows:
        with contextlib.suppress(Exception):
            stream = resume(stream, compression)
            stream.close()
    return stream.stored(root)


def resume(
    stream: StreamWriter, compression: str | None = None, *, newest_bytes: int | None = None
) -> StreamWriter:
    """The rows of `stream` in larger batches in a new file of its name, open for more.

    With `newest_bytes` only the last rows, of about that size. Raises TraceError if not all of
    them can be read back; the old file then stays.
    """
    batches, cut = read_batches(stream.path)
    rows = sum(batch.num_rows for batch in batches)
    if rows != stream.rows:
        raise TraceError(f"{stream.path}: {rows:,} of {stream.rows:,} rows can be read: {cut}")
    if newest_bytes is not None:
        batches = _newest(batches, stream.schema, newest_bytes)
    path = stream.path.with_suffix(".tmp")
    try:
        draft = StreamWriter(path, stream.schema, compression)
        for batch in _merged(batches):
            draft.append(batch)
        draft.move(stream.path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return draft


def _newest(batches: list[pa.RecordBatch], schema: pa.Schema, size: int) -> list[pa.RecordBatch]:
    """The last rows of `batches`, of about `size` bytes if all rows are alike."""
    table = pa.Table.from_batches(batches, schema)
    kept = len(table) * size // max(table.nbytes, 1)
    batches = table.slice(max(0, len(table) - kept)).to_batches()
    return list(batches)


def _merged(batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of at least COMPACT_ROWS, but for the last."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        if rows >= COMPACT_ROWS:
            yield pa.concat_batches(held)
            held, rows = [], 0
    if held:
        yield pa.concat_batches(held)


def read_batches(path: Path) -> tuple[list[pa.RecordBatch], str | None]:
    """All whole batches of the stream at `path`, memory-mapped, and what cut it short, if anything.

    A file that ends between two batches reads as complete: whether rows are missing then is
    for the manifest to say.
    """
    batches: list[pa.RecordBatch] = []
    try:
        if path.stat().st_size == 0:
            return batches, "the file is empty"
        stream = pa.ipc.open_stream(pa.memory_map(str(path)))
        while True:
            batch = stream.read_next_batch()
            batch.validate()
            batches.append(batch)
    except StopIteration:
        return batches, None
    except (OSError, pa.ArrowException, MemoryError, OverflowError) as error:
        return batches, first_line(error)


def read_stored(
    folder: Path, file: str, manifest: Manifest, schema: pa.Schema
) -> tuple[list[pa.RecordBatch], str | None]:
    """Batches of one stream, with a sentence if some of what was written is not among them.

    Columns that `schema` does not have are left out: a later moeprof may add some.
    """
    path = folder / file
    if not path.is_file():
        return [], f"{file}: is missing"
    batches, cut = read_batches(path)
    if batches and not _has_columns(batches[0].schema, schema):
        return [], f"{file}: its columns are not those of this trace"
    batches = [batch.select(schema.names) for batch in batches]
    required = [field.name for field in schema if not field.nullable]
    if any(batch.column(name).null_count for batch in batches for name in required):
        return [], f"{file}: holds nulls where a value must be ({', '.join(required)})"
    rows = sum(batch.num_rows for batch in batches)
    stored = manifest.stored(file)
    if stored is not None and rows != stored.rows:
        return batches, f"{file}: {rows:,} of {stored.rows:,} rows can be read: {cut or 'cut'}"
    if stored is None:
        why = cut or "its writer did not close it"
        return batches, f"{file}: a prefix of {rows:,} rows: {why}"
    return batches, None


def _has_columns(found: pa.Schema, wanted: pa.Schema) -> bool:
    """Whether each wanted column is found once, and is of its type."""
    places = [found.get_field_index(field.name) for field in wanted]
    return all(
        place >= 0 and _same_type(found.field(place).type, field.type)
        for place, field in zip(places, wanted, strict=True)
    )


def _same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Equal but for the names of list items and what may be null, which writers choose."""
    if not pa.types.is_fixed_size_list(wanted):
        return bool(found.equals(wanted))
    same_list = pa.types.is_fixed_size_list(found) and found.list_size == wanted.list_size
    return bool(same_list and found.value_type.equals(wanted.value_type))
