"""Arrow streams on disk that survive a crash: appended whole, read up to the last whole batch."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from moeprof.trace.schema import FILE_MODE, Manifest, StoredFile

_READ_BYTES = 1 << 20
COMPACT_ROWS = 65_536  # a batch costs 11 KB of metadata for M3's 57 columns


class StreamWriter:
    """Appends record batches to one file. What `append` returned from, `kill -9` cannot lose."""

    def __init__(self, path: Path, schema: pa.Schema, compression: str | None = None) -> None:
        self.path = path
        self.rows = 0
        self.batches = 0
        self._checksum = Checksum(path)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE))
        self._sink = pa.OSFile(str(path), "wb")
        options = pa.ipc.IpcWriteOptions(compression=compression)
        self._stream = pa.ipc.new_stream(self._sink, schema, options=options)
        self.bytes = self._sink.tell()

    def append(self, batch: pa.RecordBatch) -> None:
        """Write one batch; on failure the file is cut back to the batch before it."""
        try:
            self._stream.write_batch(batch)
        except Exception:
            os.truncate(self.path, self.bytes)
            raise
        self.rows += batch.num_rows
        self.batches += 1
        self.bytes = self._sink.tell()

    def sum_up(self) -> None:
        """Take what has been written since into the checksum; another thread may do it."""
        self._checksum.advance(self.bytes)

    def close(self) -> None:
        """End the stream and close the file."""
        self._stream.close()
        self.bytes = self._sink.tell()
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
        self._path = path
        self._value = 0
        self._done = 0

    def advance(self, stop: int) -> None:
        """Read on up to byte `stop`."""
        with open(self._path, "rb") as stored:
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
    """Compact a closed stream if asked, swap it in atomically, and describe what now stands."""
    if not (compact or compression) or not stream.rows:
        return stream.stored(root)
    batches, _ = read_batches(stream.path)
    draft = StreamWriter(stream.path.with_suffix(".tmp"), batches[0].schema, compression)
    for batch in _merged(batches):
        draft.append(batch)
    draft.close()
    entry = draft.stored(root)
    os.replace(draft.path, stream.path)
    return entry.model_copy(update={"file": stream.path.relative_to(root).as_posix()})


def _merged(batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of at least COMPACT_ROWS, but for the last."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(part.num_rows for part in held) >= COMPACT_ROWS:
            yield pa.concat_batches(held)
            held = []
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
        return batches, str(error).splitlines()[0]


def read_stored(
    folder: Path, file: str, manifest: Manifest, schema: pa.Schema
) -> tuple[list[pa.RecordBatch], str | None]:
    """Batches of one stream, with a sentence if some of what was written is not among them."""
    path = folder / file
    if not path.exists():
        return [], f"{file}: is missing"
    batches, cut = read_batches(path)
    if batches and not batches[0].schema.equals(schema):
        return [], f"{file}: its columns are not those of this trace"
    rows = sum(batch.num_rows for batch in batches)
    stored = manifest.stored(file)
    if stored is not None and rows != stored.rows:
        return batches, f"{file}: {rows:,} of {stored.rows:,} rows can be read: {cut or 'cut'}"
    if stored is None:
        why = cut or "its writer did not close it"
        return batches, f"{file}: a prefix of {rows:,} rows: {why}"
    return batches, None
