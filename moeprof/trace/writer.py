"""Writing a trace while the model runs: append-only, bounded memory, safe to kill at any time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from moeprof.trace.columns import check_ids
from moeprof.trace.folder import make_folder
from moeprof.trace.held import HeldRows, HeldWindows
from moeprof.trace.limits import SizeLimit
from moeprof.trace.rows import Request, TelemetrySample, TokenRows
from moeprof.trace.schema import (
    REQUESTS,
    TELEMETRY,
    TELEMETRY_SCHEMA,
    Manifest,
    RequestNames,
    request_schema,
    segment_file,
)
from moeprof.trace.segments import Sealer, Segments
from moeprof.trace.sides import SideFile
from moeprof.trace.streams import COMPACT_ROWS, writing_error

FLUSH_SECONDS = 0.5
MANIFEST_SECONDS = 1.0
SEGMENT_BYTES = 256 << 20

WRITE_FAILED = "write failed"
SIZE_LIMIT = "size limit"


class TraceWriter:
    """Writes `path` (a folder, by custom NAME.moetrace). Use as a context manager or `close()`.

    Rows are held up to 65,536 or half a second, whichever comes first, then appended to the open
    segment; the owner calls `tick()` at least four times a second so that nothing waits longer.
    A full segment is compacted, checksummed and swapped in on a thread of its own.

    With `max_bytes` the folder never takes more: once rows would not fit it is `full`, they and
    all later ones are counted as dropped, and the trace closes complete. With `rotate` as well,
    the oldest segments are let go to make room and counted in `rotated_tokens`. `sampling` (rate
    and seed) says that only a random part of the requests is written; `leave_out` counts the rest.
    `aggregate_steps` makes it a recording of counts: of every window of so many steps the tokens
    by phase, layer and expert, and nothing of a single token or request. `request_names` says what
    the names of its requests are: hashed, plain, or that it keeps none. `expert_bytes`, by native
    layer, is what one expert took where the model ran. `ranks` says how many write a part of this
    recording, by dimension (dp, pp, tp), so that a reader knows when one is missing.

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
        margins: bool = False,
        next_layer: bool = False,
        rank_ordered: bool | None = None,
        request_names: str = RequestNames.NONE,
        force: bool = False,
        clock_base: float | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        max_bytes: int | None = None,
        rotate: bool = False,
        sampling: Mapping[str, float] | None = None,
        expert_bytes: Mapping[int, int] | None = None,
        aggregate_steps: int | None = None,
        ranks: Mapping[str, int] | None = None,
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
            margins=margins,
            next_layer=next_layer,
            request_names=RequestNames.parse(request_names if aggregate_steps is None else "none"),
            sampling=sampling,
            expert_bytes=dict(expert_bytes or {}),
            aggregate_steps=aggregate_steps,
            ranks=dict(ranks or {}),
        )
        _refuse_columns_of_tokens(self.manifest)
        if rotate and max_bytes is None:
            raise TraceError("rotate=True needs max_bytes, the size to stay below")
        self._clock = clock
        self._held = (HeldRows if aggregate_steps is None else HeldWindows)(self.manifest)
        self._dirty_since: float | None = None
        self._last_step: int | None = None
        self._dropped: Counter[str] = Counter()
        self._saved_at = clock()
        self._stale = False  # the manifest on disk lacks some counts
        self._rotate = rotate
        self._full = False
        self._closed = False
        schema = self.manifest.segment_schema
        limit = None if max_bytes is None else SizeLimit(self.path, max_bytes, schema)
        self._limit = limit
        segment_bytes = min(segment_bytes, limit.segment_bytes) if limit else segment_bytes
        self._sealer = Sealer(self.path, compression)
        self._segments = Segments(self.path, schema, self._sealer, segment_bytes)
        share = limit.side_bytes if limit else None
        self._requests, self._telemetry = (
            SideFile(self.path / file, columns, max_bytes=share, newest=rotate)
            for file, columns in (
                (REQUESTS, request_schema(self.manifest.request_names)),
                (TELEMETRY, TELEMETRY_SCHEMA),
            )
        )
        make_folder(self.path, force)
        _raise_first(self.path, _attempt(self._save_manifest))

    @property
    def full(self) -> bool:
        """Whether the size limit was reached: no row is taken any more."""
        return self._full or self._requests.full

    def write(self, rows: TokenRows) -> bool:
        """Append `rows`; they are on disk after at most half a second of `tick()`s.

        False if the size limit leaves no room for them; they then count as dropped.
        """
        self._refuse_closed()
        self._check(rows)
        if not len(rows):
            return True
        if not self._make_room(rows):
            self._lose(len(rows), SIZE_LIMIT)
            self.tick()
            return False
        self._last_step = int(rows.step[-1])
        self._held.add(rows)
        self.manifest.tokens += len(rows)
        self._flush_in_time()
        return True

    def write_counts(self, batch: pa.RecordBatch, tokens: int) -> None:
        """Append counts of whole windows, of `tokens` tokens, to a trace that aggregates."""
        self._refuse_closed()
        if not isinstance(self._held, HeldWindows):
            raise TraceError(f"{self.path}: takes tokens, not counts: open it with aggregate_steps")
        self._held.put(batch, tokens)
        self.manifest.tokens += tokens
        self._flush_in_time()

    def _flush_in_time(self) -> None:
        self._touch()
        if self._is_batch(self._held.rows):
            self.flush()
        else:
            self.tick()

    def put_request(self, request: Request) -> None:
        """Record or replace what is known of a request. TraceError on values that cannot be."""
        self._refuse_closed()
        if self.manifest.aggregate_steps is not None:
            return  # who asks for counts alone wants nothing of a single request
        if request.name is not None and self.manifest.request_names is RequestNames.NONE:
            raise TraceError("this trace keeps no names of requests: open it with request_names")
        self._requests.put(asdict(request), request.index)
        self._touch()

    def put_telemetry(self, sample: TelemetrySample) -> None:
        """Record one NVML sample. TraceError on values that cannot be."""
        self._refuse_closed()
        self._telemetry.put(asdict(sample))
        self._touch()

    def drop(self, tokens: int, reason: str) -> None:
        """Count tokens that were seen and are not recorded."""
        self._refuse_closed()
        _refuse_negative(tokens)
        self._lose(tokens, reason)

    def _lose(self, tokens: int, reason: str) -> None:
        self._dropped[reason] += tokens
        self._stale = True
        self._touch()

    def leave_out(self, tokens: int, requests: int = 0) -> None:
        """Count what the sampler left out: it was not to be recorded, so it is not dropped."""
        self._refuse_closed()
        _refuse_negative(tokens, requests)
        self.manifest.tokens_sampled_out += tokens
        self.manifest.requests_sampled_out += requests
        self._stale = True
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
        steps = (self._requests.flush, self._telemetry.flush, self._flush_tokens)
        errors = _attempt(*steps, self._note_sealed, self._save_counts)
        if self._requests.waiting or self._telemetry.waiting:
            self._touch()
        if self._limit is not None:
            self._limit.measure()
        _raise_first(self.path, errors)

    def close(self, *, complete: bool = True) -> None:
        """Write the rest, close and checksum every file, and mark the trace complete.

        Every step is tried and the manifest saved, then the first failure raised. The trace is
        not marked complete after one, or if the caller says that a part is missing.
        """
        if self._closed:
            return
        self._closed = True
        errors = _attempt(self._held.finish)
        ends = (self._segments.end, self._end_sides, self._sealer.shutdown)
        errors += _attempt(self.flush, *ends, self._note_sealed)
        self.manifest.complete = complete and not errors
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
            ("margins", manifest.margins, rows.margins),
            ("next_experts", manifest.next_layer, rows.next_experts),
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

    def _refuse_closed(self) -> None:
        if self._closed:
            raise TraceError(f"{self.path}: is closed, nothing more can be written to it")

    def _is_batch(self, rows: int) -> bool:
        """Whether `rows` are enough to be written without waiting for more."""
        limit = self._limit
        large = limit is not None and limit.batch_bytes(rows) >= limit.segment_bytes
        return large or rows >= COMPACT_ROWS

    def _make_room(self, rows: TokenRows) -> bool:
        """Whether `rows` may be held, too; the oldest segments go if that is what it takes."""
        limit = self._limit
        if limit is None or self.full:
            return not self.full
        while not limit.fits(self._held.most(rows), self._segments.rewritten_bytes):
            self._full = not self._rotate
            if self._full or not limit.ever_fits(self._held.most(rows) - self._held.rows):
                return False
            if errors := _attempt(self._let_go_oldest):
                self._lose(len(rows), WRITE_FAILED)
                _raise_first(self.path, errors)
        return True

    def _let_go_oldest(self) -> None:
        """Remove the oldest segment.

        The manifest says so first: between the two, a reader passes over a file of that number.
        """
        if not self._segments:
            self.flush()
        oldest, manifest = self._segments.let_go_oldest(), self.manifest
        manifest.first_segment = oldest.number + 1
        manifest.files = [s for s in manifest.files if s.file != segment_file(oldest.number)]
        manifest.tokens -= oldest.tokens
        manifest.rotated_tokens += oldest.tokens
        self._save_manifest()
        self._segments.remove_up_to(oldest.number)

    def _touch(self) -> None:
        """Something waits to be written, from now if nothing did before."""
        if self._dirty_since is None:
            self._dirty_since = self._clock()

    def _flush_tokens(self) -> None:
        if self._held.rows:
            tokens, make_batch = self._held.take()
            try:
                self._segments.append(make_batch(), tokens)
            except Exception:
                self.manifest.tokens -= tokens
                self._lose(tokens, WRITE_FAILED)
                raise

    def _end_sides(self) -> None:
        sides = [self._requests.stream, self._telemetry.stream]
        ends = [partial(self._sealer.submit, side) for side in sides if side is not None]
        _raise_first(self.path, _attempt(*ends))

    def _note_sealed(self) -> None:
        """Take the checksums of files that the sealing thread has finished into the manifest."""
        files, errors = self._sealer.take()
        if files or errors:
            self.manifest.files += files
            self._save_manifest()
            _raise_first(self.path, errors)

    def _save_counts(self) -> None:
        """One save a second at most: a source may drop one token at a time."""
        if not self._stale:
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
        self._stale = False


def _refuse_columns_of_tokens(manifest: Manifest) -> None:
    """TraceError if a trace that only counts is asked for what belongs to single tokens."""
    names = ("weights", "token_ids", "margins", "next_layer")
    asked = [name for name in names if getattr(manifest, name)]
    if asked and manifest.aggregate_steps is not None:
        raise TraceError(f"aggregate_steps keeps counts alone: leave out {', '.join(asked)}")


def _refuse_negative(*counts: int) -> None:
    if min(counts) < 0:
        raise TraceError(f"{min(counts):,} is no number of tokens or requests")


def _attempt(*steps: Callable[[], object]) -> list[Exception]:
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
