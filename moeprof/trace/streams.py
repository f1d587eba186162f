"""Arrow streams on disk that survive a crash: appended whole, read up to the last whole batch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from moeprof.trace.schema import FILE_MODE, Manifest, StoredFile

COMPACT_ROWS = 65_536  # a batch costs 11 KB of metadata for M3's 57 columns


class StreamWriter:
    """Appends record batches to one file. What `append` returned from, `kill -9` cannot lose."""

    def __init__(self, path: Path, schema: pa.Schema, compression: str | None = None) -> None:
        self.path = path
        self.rows = 0
        self.batches = 0
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE))
        self._sink = pa.OSFile(str(path), "wb")
        options = pa.ipc.IpcWriteOptions(compression=compression)
        self._stream = pa.ipc.new_stream(self._sink, schema, options=options)
        self.bytes = self._sink.tell()

    def append(self, batch: pa.RecordBatch) -> None:
        """Write one batch; on failure the file is cut back to the batch before it."""
        try:
            self._stream.write_batch(batch)
        except OSError:
            os.truncate(self.path, self.bytes)
            raise
        self.rows += batch.num_rows
        self.batches += 1
        self.bytes = self._sink.tell()

    def close(self) -> None:
        """End the stream and close the file."""
        self._stream.close()
        self._sink.close()


def seal(
    root: Path, file: str, *, compact: bool = False, compression: str | None = None
) -> StoredFile:
    """Compact a closed stream if asked, swap it in atomically, and return rows and digest."""
    path = root / file
    if compact or compression:
        _rewrite(path, compression)
    rows = sum(batch.num_rows for batch in read_batches(path)[0])
    with open(path, "rb") as stored:
        digest = hashlib.file_digest(stored, "sha256").hexdigest()
    return StoredFile(file=file, rows=rows, bytes=path.stat().st_size, sha256=digest)


def _rewrite(path: Path, compression: str | None) -> None:
    batches, _ = read_batches(path)
    if not batches:
        return
    draft = path.with_suffix(".tmp")
    writer = StreamWriter(draft, batches[0].schema, compression)
    for batch in _merged(batches):
        writer.append(batch)
    writer.close()
    os.replace(draft, path)


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


