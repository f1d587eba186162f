"""What a server says at /moeprof/recent, checked: it may be anything."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from moeprof.errors import MoeprofError, TraceError
from moeprof.live.stream import same_type
from moeprof.trace import TokenRows
from moeprof.trace.columns import check_ids, from_batch
from moeprof.trace.ranks import Rank
from moeprof.trace.schema import Manifest

MAX_ROW_BYTES = 256 << 20  # of one rank's rows, once unpacked
MAX_CELLS = 1 << 22  # layers x experts
_Short = Annotated[str, Field(max_length=4096)]


class RankPlace(BaseModel):
    """Where the rank stands."""

    model_config = ConfigDict(extra="ignore", strict=True)

    dp: int = Field(default=0, ge=0, lt=1 << 20)
    pp: int = Field(default=0, ge=0, lt=1 << 20)
    tp: int = Field(default=0, ge=0, lt=1 << 20)


class RankAnswer(BaseModel):
    """One rank: its status, what it records and its newest rows."""

    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())

    rank: RankPlace = RankPlace()
    writes: bool = True
    recording: bool = False
    path: _Short | None = None
    tokens: NonNegativeInt = 0
    prefill_tokens: NonNegativeInt = 0
    decode_tokens: NonNegativeInt = 0
    dropped: Annotated[dict[_Short, NonNegativeInt], Field(max_length=64)] = {}
    sampled_out: NonNegativeInt = 0
    rotated: NonNegativeInt = 0
    pending_bytes: NonNegativeInt | None = None
    error: str | None = None
    model: _Short = ""
    layers: Annotated[list[NonNegativeInt], Field(max_length=4096)] = []
    experts: int = Field(default=0, ge=0, le=65_536)
    top_k: int = Field(default=0, ge=0, le=4096)
    engine: _Short = ""
    engine_version: _Short = ""
    process: int | None = None
    rows: str | None = None

    @property
    def place(self) -> Rank:
        """Where it stands in the engine."""
        return Rank(self.rank.dp, self.rank.pp, self.rank.tp)

    @property
    def shown(self) -> bool:
        """Whether there is something to compute figures of."""
        return self.writes and bool(self.layers and self.experts and self.top_k)


class RecentAnswer(BaseModel):
    """The whole answer."""

    model_config = ConfigDict(extra="ignore", strict=True)

    recording: bool
    ranks: Annotated[list[RankAnswer], Field(max_length=4096)]


class AnswerError(MoeprofError):
    """A server answers what moeprof cannot read."""


def read_answer(document: Any) -> RecentAnswer:
    """The answer in `document`, writing ranks first in order. Raises AnswerError."""
    try:
        answer = RecentAnswer.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise AnswerError(f"an answer of another kind: {place or 'it'}: {first['msg']}") from None
    answer.ranks.sort(key=lambda rank: rank.place)
    shown = [rank for rank in answer.ranks if rank.shown]
    if len({rank.place for rank in shown}) < len(shown):
        raise AnswerError("two ranks say that they are the same")
    if len({(rank.experts, rank.top_k) for rank in shown}) > 1:
        raise AnswerError("ranks differ in experts or top-k")
    layers = {layer for rank in shown for layer in rank.layers}
    if shown and len(layers) * shown[0].experts > MAX_CELLS:
        raise AnswerError(f"{len(layers):,} layers of {shown[0].experts:,} experts are too many")
    if any(len(set(rank.layers)) < len(rank.layers) for rank in shown):
        raise AnswerError("a layer is named twice")
    return answer


def rows_of(rank: RankAnswer) -> list[TokenRows]:
    """The rows that `rank` sent, in order of step. Raises AnswerError."""
    if not rank.rows or not rank.shown:
        return []
    manifest = Manifest.make(
        clock_base=0.0, model={}, layers=rank.layers, experts=rank.experts, top_k=rank.top_k
    )
    try:
        return list(_batches(base64.b64decode(rank.rows, validate=True), manifest))
    except TraceError as error:
        raise AnswerError(f"rank {rank.place}: {error}") from None
    except (binascii.Error, pa.ArrowException, OSError, ValueError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise AnswerError(f"rank {rank.place}: its rows cannot be read: {reason}") from None


def _batches(content: bytes, manifest: Manifest) -> Iterator[TokenRows]:
    schema = manifest.segment_schema
    last, size = -1, 0
    with pa.ipc.open_stream(content) as stream:
        for field in schema:
            places = stream.schema.get_all_field_indices(field.name)
            if len(places) != 1 or not same_type(stream.schema.field(places[0]).type, field.type):
                raise TraceError(f"its rows have no such column as {field.name}")
        for batch in stream:
            size += batch.nbytes
            if size > MAX_ROW_BYTES:
                raise TraceError(f"its rows are larger than {MAX_ROW_BYTES:,} bytes")
            batch = batch.select(schema.names)
            batch.validate(full=True)
            if not batch.num_rows:
                continue
            if any(batch.column(i).null_count for i in range(3)):
                raise TraceError("its rows hold nulls where a value must be")
            rows = from_batch(batch, manifest)
            check_ids(rows, manifest)
            if rows.step[0] < max(last, 0) or (np.diff(rows.step) < 0).any():
                raise TraceError("its steps are not in order")
            last = int(rows.step[-1])
            yield rows
