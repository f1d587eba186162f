"""Writing a trace while the model runs: append-only, bounded memory, safe to kill at any time."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from moeprof import __version__
from moeprof.errors import TraceError
from moeprof.model import MoEModel
from moeprof.trace.columns import concat_rows, to_batch
from moeprof.trace.rows import Request, TelemetrySample, TokenRows
from moeprof.trace.schema import (
    FOLDER_MODE,
    MANIFEST,
    REQUEST_SCHEMA,
    REQUESTS,
    SCHEMA,
    SEGMENTS,
    TELEMETRY,
    TELEMETRY_SCHEMA,
    Manifest,
    StoredFile,
)
from moeprof.trace.streams import COMPACT_ROWS, StreamWriter, seal

FLUSH_SECONDS = 0.5
SEGMENT_BYTES = 256 << 20


class TraceWriter:
    """Writes `path` (a folder, by custom NAME.moetrace). Use as a context manager or `close()`.

    Rows are held up to 65,536 or half a second, whichever comes first, then appended to the open
    segment; the owner calls `tick()` at least four times a second so that nothing waits longer.
    A full segment is compacted, checksummed and swapped in on a thread of its own.

    Raises InputError if `path` exists and `force` is false, or on rows of another shape.
    """

    def __init__(
        self,
        path: str | Path,
        model: MoEModel,
        *,
        layers: Sequence[int] | None = None,
        top_k: int | None = None,
        engine: str = "",
        engine_version: str = "",
        weights: bool = False,
        token_ids: bool = False,
        rank_ordered: bool | None = None,
        force: bool = False,
        clock_base: float | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        compression: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = Path(path)
        self.clock_base = time.time() if clock_base is None else clock_base
        self.manifest = Manifest(
            schema=SCHEMA,
            moeprof=__version__,
            clock_base=self.clock_base,
            model=model.to_dict(),
            layers=list(model.moe_layers if layers is None else layers),
            experts=model.experts,
            top_k=model.top_k if top_k is None else top_k,
            engine=engine,
            engine_version=engine_version,
            rank_ordered=rank_ordered,
            weights=weights,
            token_ids=token_ids,
        )
        self._clock = clock
        self._segment_bytes = segment_bytes
        self._compression = compression
        self._pending: list[TokenRows] = []
        self._pending_since = 0.0
        self._requests: dict[int, Request] = {}
        self._telemetry: list[TelemetrySample] = []
        self._dropped: Counter[str] = Counter()
        self._segment: StreamWriter | None = None
        self._segments = 0
        self._side: dict[str, StreamWriter] = {}
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="moeprof-seal")
        self._sealing: list[Future[StoredFile]] = []
        self._closed = False
        _make_folder(self.path, force)
        self.manifest.save(self.path)

    def write(self, rows: TokenRows) -> None:
        """Append `rows`; they are on disk after at most half a second of `tick()`s."""
        self._check(rows)
        if not len(rows):
            return
        if not self._pending:
            self._pending_since = self._clock()
        self._pending.append(rows)
        self.manifest.tokens += len(rows)
        if sum(map(len, self._pending)) >= COMPACT_ROWS:
            self.flush()
        else:
            self.tick()

    def put_request(self, request: Request) -> None:
        """Record or replace what is known of a request."""
        self._requests[request.index] = request

    def put_telemetry(self, sample: TelemetrySample) -> None:
        """Record one NVML sample."""
        self._telemetry.append(sample)

    def drop(self, tokens: int, reason: str) -> None:
        """Count tokens that were seen and are not recorded."""
        self._dropped[reason] += tokens

    def tick(self) -> None:
        """Write what has waited for half a second."""
        if self._pending and self._clock() - self._pending_since >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write everything held, now."""
        self._flush_side(REQUESTS, REQUEST_SCHEMA, [asdict(r) for r in self._requests.values()])
        self._requests.clear()
        self._flush_side(TELEMETRY, TELEMETRY_SCHEMA, [asdict(s) for s in self._telemetry])
        self._telemetry.clear()
        if self._pending:
            rows, self._pending = concat_rows(self._pending), []
            self._append(rows)
        self._note_sealed()

    def close(self) -> None:
        """Write the rest, close and checksum every file, and mark the trace complete."""
        if self._closed:
            return
        self._closed = True
        try:
            self.flush()
            self._end_segment()
            for side in self._side.values():
                self._end_stream(side)
        finally:
            self._sealer.shutdown()
        self._note_sealed()
        self.manifest.complete = True
        self._save_manifest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self, rows: TokenRows) -> None:
        manifest = self.manifest
        shape = (len(rows), len(manifest.layers), manifest.top_k)
        if rows.experts.shape != shape:
            raise TraceError(f"experts have shape {rows.experts.shape}, this trace takes {shape}")
        for name, wanted, given in (
            ("weights", manifest.weights, rows.weights),
            ("token_id", manifest.token_ids, rows.token_id),
        ):
            if wanted != (given is not None):
                has = "must have" if wanted else "must not have"
                raise TraceError(f"rows of this trace {has} {name}")

    def _append(self, rows: TokenRows) -> None:
        try:
            segment = self._segment or self._open_segment()
            segment.append(to_batch(rows, self.manifest))
        except Exception:
            # The segment stays as it is, a readable prefix; a later write starts another.
            self._segment = None
            self.manifest.tokens -= len(rows)
            self.drop(len(rows), "write failed")
            raise
        if segment.bytes >= self._segment_bytes:
            self._end_segment()
        elif len(rows) >= COMPACT_ROWS:
            self._sealer.submit(segment.sum_up)  # while the next batch is being made

    def _open_segment(self) -> StreamWriter:
        path = self.path / SEGMENTS / f"{self._segments:06d}.arrows"
        self._segment = StreamWriter(path, self.manifest.segment_schema)
        self._segments += 1
        return self._segment

    def _end_segment(self) -> None:
        if self._segment is not None:
            segment, self._segment = self._segment, None
            self._end_stream(segment)

    def _end_stream(self, stream: StreamWriter) -> None:
        stream.close()
        compact = stream.batches > 1 + stream.rows // COMPACT_ROWS
        self._sealing.append(
            self._sealer.submit(
                seal, self.path, stream, compact=compact, compression=self._compression
            )
        )

    def _note_sealed(self) -> None:
        """Take the checksums of files that the sealing thread has finished into the manifest."""
        done = [future for future in self._sealing if future.done()]
        if not done:
            return
        self._sealing = [future for future in self._sealing if future not in done]
        for stored in (future.result() for future in done):
            self.manifest.files.append(stored)
        self._save_manifest()

    def _save_manifest(self) -> None:
        self.manifest.dropped = dict(sorted(self._dropped.items()))
        self.manifest.files.sort(key=lambda stored: stored.file)
        self.manifest.save(self.path)

    def _flush_side(self, file: str, schema: pa.Schema, rows: list[dict[str, object]]) -> None:
        if not rows:
            return
        if file not in self._side:
            self._side[file] = StreamWriter(self.path / file, schema)
        self._side[file].append(pa.RecordBatch.from_pylist(rows, schema=schema))


def _make_folder(path: Path, force: bool) -> None:
    """An empty folder for the trace; replaces a trace, and nothing but a trace, when forced."""
    if path.exists():
        if not force:
            raise TraceError(f"{path} exists, it will not be overwritten without --force")
        if not (path / MANIFEST).is_file():
            raise TraceError(f"{path} is not a trace, --force replaces only traces")
        shutil.rmtree(path)
    try:
        path.mkdir(mode=FOLDER_MODE, parents=True)
        (path / SEGMENTS).mkdir(mode=FOLDER_MODE)
    except OSError as error:
        raise TraceError(f"{path}: cannot be created: {error.strerror}") from None
