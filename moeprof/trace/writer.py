"""Writing a trace while the model runs: append-only, bounded memory, safe to kill at any time."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.model import MoEModel
from moeprof.trace.columns import check_ids, concat_rows, to_batch
from moeprof.trace.rows import Request, TelemetrySample, TokenRows
from moeprof.trace.schema import (
    FOLDER_MODE,
    MANIFEST,
    REQUEST_SCHEMA,
    REQUESTS,
    SEGMENTS,
    TELEMETRY,
    TELEMETRY_SCHEMA,
    Manifest,
    StoredFile,
)
from moeprof.trace.streams import COMPACT_ROWS, StreamWriter, resume, seal, writing_error

FLUSH_SECONDS = 0.5
MANIFEST_SECONDS = 1.0
SEGMENT_BYTES = 256 << 20


class TraceWriter:
    """Writes `path` (a folder, by custom NAME.moetrace). Use as a context manager or `close()`.

    Rows are held up to 65,536 or half a second, whichever comes first, then appended to the open
    segment; the owner calls `tick()` at least four times a second so that nothing waits longer.
    A full segment is compacted, checksummed and swapped in on a thread of its own.

    Raises InputError if `path` exists and `force` is false, or on rows of another shape, with ids
    that are no experts or steps that decrease; TraceWriteError where the disk refuses. After that
    it can be written to again: what was lost is counted as dropped.
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
        self.manifest = Manifest.make(
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
        self._pending_rows = 0
        self._dirty_since: float | None = None
        self._last_step: int | None = None
        self._requests: dict[int, Request] = {}
        self._telemetry: list[TelemetrySample] = []
        self._dropped: Counter[str] = Counter()
        self._segment: StreamWriter | None = None
        self._segments = 0
        self._side: dict[str, StreamWriter] = {}
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="moeprof-seal")
        self._sealing: list[Future[StoredFile]] = []
        self._saved_at = clock()
        self._closed = False
        _make_folder(self.path, force)
        _raise_first(self.path, _attempt(self._save_manifest))

    def write(self, rows: TokenRows) -> None:
        """Append `rows`; they are on disk after at most half a second of `tick()`s."""
        self._check(rows)
        if not len(rows):
            return
        self._last_step = int(rows.step[-1])
        self._pending.append(rows)
        self._pending_rows += len(rows)
        self.manifest.tokens += len(rows)
        self._touch()
        if self._pending_rows >= COMPACT_ROWS:
            self.flush()
        else:
            self.tick()

    def put_request(self, request: Request) -> None:
        """Record or replace what is known of a request."""
        self._requests[request.index] = request
        self._touch()

    def put_telemetry(self, sample: TelemetrySample) -> None:
        """Record one NVML sample."""
        self._telemetry.append(sample)
        self._touch()

    def drop(self, tokens: int, reason: str) -> None:
        """Count tokens that were seen and are not recorded."""
        self._dropped[reason] += tokens
        self._touch()

    def tick(self) -> None:
        """Write what has waited for half a second."""
        since = self._dirty_since
        if since is not None and self._clock() - since >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write everything held, now; counts of dropped tokens at most once a second.

        Every kind is tried, then the first failure raised. Requests and telemetry wait for the
        next flush if they could not be written, tokens are counted as dropped.
        """
        self._dirty_since = None
        steps = (self._flush_requests, self._flush_telemetry, self._flush_tokens)
        errors = _attempt(*steps, self._note_sealed, self._save_dropped)
        if self._requests or self._telemetry:
            self._touch()
        _raise_first(self.path, errors)

    def close(self) -> None:
        """Write the rest, close and checksum every file, and mark the trace complete.

        Every step is tried and the manifest saved, then the first failure raised; after one the
        trace is not marked complete.
        """
        if self._closed:
            return
        self._closed = True
        ends = (self._end_segment, self._end_sides, self._sealer.shutdown)
        errors = _attempt(self.flush, *ends, self._note_sealed)
        self.manifest.complete = not errors
        errors += _attempt(self._save_manifest)
        _raise_first(self.path, errors)

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
        check_ids(rows, manifest)
        self._check_steps(rows.step)

    def _check_steps(self, step: NDArray[np.int64]) -> None:
        """Rows are in engine order, so the step of one is never below that of the row before."""
        falls = step[1:] < step[:-1]
        if falls.any():
            row = int(falls.argmax()) + 1
            raise TraceError(f"row {row}: step {step[row]} follows step {step[row - 1]}")
        if len(step) and self._last_step is not None and step[0] < self._last_step:
            raise TraceError(f"row 0: step {step[0]} follows step {self._last_step}")

    def _touch(self) -> None:
        """Something waits to be written, from now if nothing did before."""
        if self._dirty_since is None:
            self._dirty_since = self._clock()

    def _flush_requests(self) -> None:
        rows = [asdict(request) for request in self._requests.values()]
        self._flush_side(REQUESTS, REQUEST_SCHEMA, rows)
        self._requests.clear()

    def _flush_telemetry(self) -> None:
        rows = [asdict(sample) for sample in self._telemetry]
        self._flush_side(TELEMETRY, TELEMETRY_SCHEMA, rows)
        self._telemetry.clear()

    def _flush_tokens(self) -> None:
        if self._pending:
            held, self._pending, self._pending_rows = self._pending, [], 0
            self._append(concat_rows(held))

    def _append(self, rows: TokenRows) -> None:
        try:
            segment = self._segment or self._open_segment()
            segment.append(to_batch(rows, self.manifest))
        except Exception:
            self.manifest.tokens -= len(rows)
            self.drop(len(rows), "write failed")
            self._end_segment()  # a whole prefix; a later write starts another
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

    def _end_sides(self) -> None:
        ends = [partial(self._end_stream, side) for side in self._side.values()]
        _raise_first(self.path, _attempt(*ends))

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
        errors = [error for future in done if isinstance(error := future.exception(), Exception)]
        self.manifest.files += [future.result() for future in done if not future.exception()]
        self._save_manifest()
        _raise_first(self.path, errors)

    def _save_dropped(self) -> None:
        """One save a second at most: a source may drop one token at a time."""
        if self.manifest.dropped == self._dropped:
            return
        if self._clock() - self._saved_at >= MANIFEST_SECONDS:
            self._save_manifest()
        else:
            self._touch()

    def _save_manifest(self) -> None:
        self.manifest.dropped = dict(sorted(self._dropped.items()))
        self.manifest.files.sort(key=lambda stored: stored.file)
        self.manifest.save(self.path)
        self._saved_at = self._clock()

    def _flush_side(self, file: str, schema: pa.Schema, rows: list[dict[str, object]]) -> None:
        if not rows:
            return
        side = self._side.get(file)
        if side is None:
            side = StreamWriter(self.path / file, schema)
        elif side.failed:
            side = resume(side)
        self._side[file] = side
        side.append(pa.RecordBatch.from_pylist(rows, schema=schema))


def _attempt(*steps: Callable[[], None]) -> list[Exception]:
    """Run every step whatever the others do, and return what failed."""
    errors = []
    for step in steps:
        try:
            step()
        except Exception as error:
            errors.append(error)
    return errors


def _raise_first(path: Path, errors: list[Exception]) -> None:
    if errors:
        raise writing_error(path, errors[0]) from None


def _make_folder(path: Path, force: bool) -> None:
    """An empty folder for the trace; replaces a trace, and nothing but a trace, when forced."""
    if path.exists():
        if not force:
            raise TraceError(f"{path} exists, it will not be overwritten without --force")
        if not (path / MANIFEST).is_file():
            raise TraceError(f"{path} is not a trace, --force replaces only traces")
    try:
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(mode=FOLDER_MODE, parents=True)
        (path / SEGMENTS).mkdir(mode=FOLDER_MODE)
    except OSError as error:
        raise TraceError(f"{path}: cannot be created: {error.strerror}") from None
