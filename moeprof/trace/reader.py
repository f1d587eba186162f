"""Reading a trace: lazy, memory-mapped, layer by layer, and still when it is cut or damaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.model import MoEModel
from moeprof.trace.columns import (
    check_ids,
    from_batch,
    list_values,
    scalar_values,
    to_batch,
    validity,
)
from moeprof.trace.counts import (
    counted_tokens,
    counts_by_phase,
    dense_counts,
    placed_counts,
    read_counts,
)
from moeprof.trace.rows import Phase, Request, TelemetrySample, TokenRows
from moeprof.trace.schema import (
    AGGREGATE_SCHEMA,
    MANIFEST,
    RANKS,
    REQUESTS,
    SEGMENTS,
    TELEMETRY,
    TELEMETRY_SCHEMA,
    Manifest,
    expert_dtype,
    experts_column,
    margins_column,
    next_experts_column,
    next_weights_column,
    request_schema,
    segment_number,
    weights_column,
)
from moeprof.trace.streams import read_stored


class LayerBatch(NamedTuple):
    """Consecutive rows of one layer, zero-copy."""

    start: int  # first row
    experts: NDArray[np.unsignedinteger]  # [rows, k]; meaningless where not recorded
    recorded: NDArray[np.bool_] | None  # [rows]; None: all


class Trace:
    """One recording, opened. Arrays are by row, a row is a token in engine order.

    `problems` says in sentences what is missing or damaged; what is whole still reads.
    """

    def __init__(
        self,
        manifest: Manifest,
        batches: Sequence[pa.RecordBatch],
        requests: Sequence[Request] = (),
        *,
        telemetry: Sequence[TelemetrySample] = (),
        path: Path | None = None,
        problems: Sequence[str] = (),
        counts: pa.Table | None = None,
    ) -> None:
        self.manifest = manifest
        self.path = path
        self.model = MoEModel.from_dict(manifest.model)
        self.layers = tuple(manifest.layers)
        self.experts_per_layer = manifest.experts
        self.top_k = manifest.top_k
        self.requests = tuple(sorted(requests, key=lambda request: request.index))
        self.telemetry = tuple(telemetry)
        self.problems = tuple(problems)
        self.foreign: Path | None = None  # the file of another program that this was made of
        self.ranks: tuple[str, ...] = ()  # that this was joined of
        self.missing_ranks: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()  # what making it left out or assumed
        self._batches = [batch for batch in batches if batch.num_rows]
        self._count_rows = counts
        self.tokens = sum(batch.num_rows for batch in batches)
        if manifest.aggregate_steps is not None:
            self.tokens = sum(self.tokens_by_phase.values())

    @classmethod
    def in_memory(cls, model: MoEModel, rows: TokenRows, requests: Sequence[Request] = ()) -> Trace:
        """A trace that was never a file, for tests and for rows made by a program."""
        manifest = Manifest.make(
            clock_base=0.0,
            model=model.to_dict(),
            layers=list(model.moe_layers),
            experts=model.experts,
            top_k=rows.experts.shape[2],
            weights=rows.weights is not None,
            token_ids=rows.token_id is not None,
            margins=rows.margins is not None,
            next_layer=rows.next_experts is not None,
            complete=True,
            tokens=len(rows),
        )
        check_ids(rows, manifest)
        return cls(manifest, [to_batch(rows, manifest)], requests)

    @property
    def dropped(self) -> dict[str, int]:
        """Tokens that were seen and not recorded, by reason."""
        return dict(self.manifest.dropped)

    @property
    def labels(self) -> tuple[str, ...]:
        """The distinct labels of the requests, sorted."""
        return tuple(sorted({r.label for r in self.requests if r.label is not None}))

    @cached_property
    def step(self) -> NDArray[np.int64]:
        """[tokens] forward pass that each token was in."""
        return self._column("step")

    @cached_property
    def request(self) -> NDArray[np.int32]:
        """[tokens] index of the request that each token belongs to."""
        return self._column("request")

    @cached_property
    def position(self) -> NDArray[np.int32]:
        """[tokens] place of each token in its request's sequence, from 0."""
        return self._column("position")

    @cached_property
    def phase(self) -> NDArray[np.int8]:
        """[tokens] of Phase; -1 where the source did not say."""
        codes = self.phase_codes
        known = (codes >= Phase.UNKNOWN) & (codes <= Phase.DECODE)
        return codes if known.all() else np.where(known, codes, np.int8(Phase.UNKNOWN))

    @cached_property
    def phase_codes(self) -> NDArray[np.int8]:
        """[tokens] phases as they are stored, sound or not; -1 for null."""
        return self._column("phase", null=Phase.UNKNOWN)

    @cached_property
    def token_id(self) -> NDArray[np.int32]:
        """[tokens] vocabulary ids; TraceError unless they were asked for when recording."""
        if not self.manifest.token_ids:
            raise TraceError(f"{self}: token ids were not recorded; record with token_ids=True")
        return self._column("token_id", null=-1)

    @cached_property
    def label_code(self) -> NDArray[np.int32]:
        """[tokens] index into `labels` of each token's request, -1 where it has none."""
        code = {label: index for index, label in enumerate(self.labels)}
        known = {r.index: code[r.label] for r in self.requests if r.label is not None}
        indices, inverse = np.unique(self.request, return_inverse=True)
        codes = np.array([known.get(int(index), -1) for index in indices], np.int32)
        return codes[inverse]

    @cached_property
    def label(self) -> NDArray[np.str_]:
        """[tokens] label of each token's request, '' where it has none.

        A string a token is large: compare `label_code` where an index will do.
        """
        return np.array([*self.labels, ""])[self.label_code]  # -1 is the last

    def rows(self, batch_rows: int = 65_536) -> Iterator[TokenRows]:
        """All rows in order, at most `batch_rows` at a time: what `TraceWriter.write` takes.

        Where the phase is not known it is -1, whether or not it was given.
        """
        self._need_order()
        for batch in self._batches:
            for start in range(0, batch.num_rows, batch_rows):
                yield from_batch(batch.slice(start, batch_rows), self.manifest)

    def excerpt(self, first: int, stop: int) -> Trace:
        """Rows `first` to `stop` as a trace of their own, zero-copy; steps and requests keep their
        numbers. Raises TraceError for a recording of counts.
        """
        self._need_order()
        kept, start = [], 0
        for batch in self._batches:
            begin, end = max(first - start, 0), min(stop - start, batch.num_rows)
            if begin < end:
                kept.append(batch.slice(begin, end - begin))
            start += batch.num_rows
        return Trace(self.manifest, kept, self.requests, path=self.path, problems=self.problems)

    @cached_property
    def unrecorded(self) -> int:
        """How many (token, layer) places are null: the layer was not recorded for the token."""
        columns = [experts_column(layer) for layer in self.layers]
        return sum(batch.column(name).null_count for batch in self._batches for name in columns)

    def batches(self, layer: int) -> Iterator[LayerBatch]:
        """The rows of native layer `layer`, zero-copy, as stored: bounded memory at any size."""
        yield from self._id_batches(experts_column(self._layer(layer)))

    def next_batches(self, layer: int) -> Iterator[LayerBatch]:
        """Like `batches`, of what the next layer's router makes of `layer`'s hidden state."""
        yield from self._id_batches(next_experts_column(self._layer_before_next(layer)))

    def experts(self, layer: int) -> NDArray[np.unsignedinteger]:
        """[rows, k] logical expert ids of the rows that have native layer `layer`.

        These are all tokens, unless `recorded(layer)` is False somewhere.
        """
        parts = [_known(part) for part in self.batches(layer)]
        return _joined(parts, np.zeros((0, self.top_k), expert_dtype(self.experts_per_layer)))

    def recorded(self, layer: int) -> NDArray[np.bool_]:
        """[tokens] whether native layer `layer` was recorded for each token."""
        masks = [
            np.ones(len(part.experts), bool) if part.recorded is None else part.recorded
            for part in self.batches(layer)
        ]
        return _joined(masks, np.zeros(0, bool))

    def weights(self, layer: int) -> NDArray[np.float16]:
        """[rows, k] gate weights of the rows that have native layer `layer`.

        Raises TraceError unless weights were asked for when recording.
        """
        if not self.manifest.weights:
            raise TraceError(f"{self}: gate weights were not recorded; record with weights=True")
        return self._gates(weights_column(self._layer(layer)))

    def margins(self, layer: int) -> NDArray[np.float16]:
        """[rows] by how much the last chosen expert beat the first not chosen; NaN: not known.

        Of the rows that have native layer `layer`. Raises TraceError unless margins were asked
        for when recording.
        """
        if not self.manifest.margins:
            raise TraceError(f"{self}: margins were not recorded; record with margins=True")
        name = margins_column(self._layer(layer))
        parts = []
        for batch in self._batches:
            mask = validity(batch.column(experts_column(layer)))
            values = scalar_values(batch.column(name))
            parts.append(values if mask is None else values[mask])
        return _joined(parts, np.zeros(0, np.float16))

    def next_experts(self, layer: int) -> NDArray[np.unsignedinteger]:
        """[rows, k] experts that the next layer's router would choose from `layer`'s hidden state.

        Of the rows that have native layer `layer`, which has another recorded layer behind it.
        Raises TraceError unless this was asked for when recording.
        """
        parts = [_known(part) for part in self.next_batches(layer)]
        return _joined(parts, np.zeros((0, self.top_k), expert_dtype(self.experts_per_layer)))

    def next_weights(self, layer: int) -> NDArray[np.float16]:
        """[rows, k] gate weights of `next_experts(layer)`."""
        return self._gates(next_weights_column(self._layer_before_next(layer)))

    @property
    def counts_only(self) -> bool:
        """True for a recording of counts, which has no token order."""
        return self._count_rows is not None and not self._batches

    @property
    def count_rows(self) -> pa.Table:
        """The rows of a recording of counts, as they are stored. TraceError of any other."""
        if self._count_rows is None:
            raise TraceError(f"{self}: holds no counts, it holds tokens")
        return self._count_rows

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """[windows, layers, experts] tokens per expert, of a trace that holds only counts."""
        return dense_counts(self.count_rows, self.manifest)

    @cached_property
    def counts_by_phase(self) -> dict[Phase, NDArray[np.int64]]:
        """[layers, experts] tokens per expert of each phase, of a trace that holds only counts."""
        return counts_by_phase(self.count_rows, self.manifest)

    @cached_property
    def tokens_by_phase(self) -> dict[Phase, int]:
        """Tokens of each phase; of a trace of counts as far as they follow from those."""
        if self.counts_only:
            loads = self.counts_by_phase.items()
            return {phase: counted_tokens(load, self.manifest) for phase, load in loads}
        return {phase: int(np.count_nonzero(self.phase == phase)) for phase in Phase}

    def __str__(self) -> str:
        return str(self.foreign or self.path or "in-memory trace")

    def __repr__(self) -> str:
        return (
            f"<Trace {self}: {self.tokens:,} tokens x {len(self.layers)} layers x "
            f"{self.top_k} of {self.experts_per_layer} experts, {self.model.name}>"
        )

    def _need_order(self) -> None:
        if self.counts_only:
            raise TraceError(f"{self}: holds counts only; this needs the order of tokens")

    def _layer(self, layer: int) -> int:
        self._need_order()
        if layer not in self.layers:
            raise TraceError(
                f"{self}: layer {layer} was not recorded; recorded are {_ranges(self.layers)}"
            )
        return layer

    def _layer_before_next(self, layer: int) -> int:
        """`layer`, if what the layer behind it would choose was recorded with it."""
        if not self.manifest.next_layer:
            raise TraceError(
                f"{self}: the next layer's choices were not recorded; record with next_layer=True"
            )
        if self._layer(layer) == self.layers[-1]:
            raise TraceError(f"{self}: layer {layer} is the last that was recorded, none is next")
        return layer

    def _id_batches(self, name: str) -> Iterator[LayerBatch]:
        start = 0
        for batch in self._batches:
            column = batch.column(name)
            yield LayerBatch(start, list_values(column), validity(column))
            start += batch.num_rows

    def _gates(self, name: str) -> NDArray[np.float16]:
        parts = []
        for batch in self._batches:
            column = batch.column(name)
            mask = validity(column)
            values = list_values(column)
            parts.append(values if mask is None else values[mask])
        return _joined(parts, np.zeros((0, self.top_k), np.float16))

    def _column(self, name: str, null: int | None = None) -> NDArray[Any]:
        self._need_order()
        dtype = self.manifest.segment_schema.field(name).type.to_pandas_dtype()
        parts = []
        for batch in self._batches:
            column = batch.column(name)
            if column.null_count:
                column = column.fill_null(null)
            parts.append(column.to_numpy(zero_copy_only=True))
        return _joined(parts, np.zeros(0, dtype))


def _known(part: LayerBatch) -> NDArray[np.unsignedinteger]:
    return part.experts if part.recorded is None else part.experts[part.recorded]


def _joined(parts: list[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
    """All parts as one array; a single part is not copied."""
    if not parts:
        return empty
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def open_trace(path: str | Path) -> Trace:
    """Open the trace in folder `path`, or convert an importable file in a temporary folder.

    Where several ranks wrote it, what they wrote is joined there.

    Raises TraceError if there is neither; damage goes to `problems`, what a conversion skipped to
    `notes`.
    """
    path = Path(path)
    if not path.exists():
        raise TraceError(f"{path}: no such trace")
    if (path / RANKS).is_dir() and not (path / MANIFEST).exists():
        from moeprof.trace.ranks import open_ranks  # which opens those of the ranks

        return open_ranks(path)
    if path.is_dir():
        return open_folder(path)
    from moeprof.trace.formats.opening import open_foreign  # the importers read traces, too

    return open_foreign(path)


def open_folder(folder: Path) -> Trace:
    """The trace in `folder`. Raises TraceError if there is none; damage goes to `problems`."""
    manifest, batches, problems = _read_rotating(folder)
    columns = request_schema(manifest.request_names)
    requests, request_problems = _read_rows(folder, REQUESTS, manifest, columns)
    telemetry, telemetry_problems = _read_rows(folder, TELEMETRY, manifest, TELEMETRY_SCHEMA)
    if manifest.aggregate_steps is None:
        counts, count_problems = read_counts(folder, manifest)
    else:
        table = pa.Table.from_batches(batches, AGGREGATE_SCHEMA)
        counts, count_problems = placed_counts(SEGMENTS, table, manifest)
        batches = []
    return Trace(
        manifest,
        batches,
        list({row["index"]: Request(**row) for row in requests}.values()),  # the last one holds
        telemetry=[TelemetrySample(**row) for row in telemetry],
        path=folder,
        problems=[*problems, *request_problems, *telemetry_problems, *count_problems],
        counts=counts,
    )


def _read_rotating(folder: Path) -> tuple[Manifest, list[pa.RecordBatch], list[str]]:
    """The manifest and the segments that go with it, while a writer may let go the oldest."""
    manifest = Manifest.load(folder)
    while True:
        batches, problems = _read_segments(folder, manifest)
        now = Manifest.load(folder)
        if now.first_segment == manifest.first_segment:
            return manifest, batches, problems
        manifest = now


def _read_segments(folder: Path, manifest: Manifest) -> tuple[list[pa.RecordBatch], list[str]]:
    """The whole batches of every segment in order, and what is wrong with each."""
    listed = {stored.file for stored in manifest.files if stored.file.startswith(SEGMENTS)}
    found = {f"{SEGMENTS}/{path.name}" for path in (folder / SEGMENTS).glob("*.arrows")}
    batches: list[pa.RecordBatch] = []
    problems: list[str] = []
    for file in sorted(listed | found, key=lambda file: (segment_number(file), file)):
        if 0 <= segment_number(file) < manifest.first_segment:
            continue  # let go, and not yet removed
        good, problem = read_stored(folder, file, manifest, manifest.segment_schema)
        batches += good
        if problem:
            problems.append(problem)
    return batches, problems


def _read_rows(
    folder: Path, file: str, manifest: Manifest, schema: pa.Schema
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a file that a trace may lack, and what is wrong with it."""
    if not (folder / file).exists() and manifest.stored(file) is None:
        return [], []
    batches, problem = read_stored(folder, file, manifest, schema)
    rows = [row for batch in batches for row in batch.to_pylist()]
    return rows, [problem] if problem else []


def _ranges(numbers: Sequence[int]) -> str:
    """'3-59' or '1, 4-6'."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
