"""From a step's small metadata to token rows: what is traffic, where it stands, whose it is.

Traffic is every token that a request needed the model to route. Not traffic are padding (mask 0),
and what a batched `generate` feeds a row that is already done: its end-of-sequence token and the
padding after it, fed only because other rows go on. Run alone, the request would route exactly
the same tokens. Everything else counts: with the cache switched off every forward routes the
whole sequence again, and assisted decoding routes candidates that are later rejected. Of a beam
search, `beams` picks the rows that something came of.

All of it runs in the writer thread, because on a GPU the metadata is there only later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.routing import Routing
from moeprof.capture.transformers.traffic.step import Batch, BatchEnd, PackedStep, Step
from moeprof.capture.transformers.traffic.tokens import Traffic
from moeprof.trace.rows import Phase, Request, TokenRows
from moeprof.trace.schema import expert_dtype

NO_TOKEN_ID = -1  # the step came as embeddings


@dataclass
class Progress:
    """How far the rows of one batch have come."""

    batch: Batch
    padding: NDArray[np.int64]  # [rows] padding columns so far
    done: NDArray[np.bool_]  # [rows] an end-of-sequence token was fed back
    prompt_tokens: NDArray[np.int64]  # [rows]
    length: NDArray[np.int64]  # [rows] tokens of the sequence that were routed or cached
    offset: NDArray[np.int64]  # [rows] what the model's position ids are ahead of the places
    prompt_complete: bool = False
    lost: bool = False  # a step went by unseen: later ones cannot be placed

    @classmethod
    def start(cls, batch: Batch) -> Progress:
        """Of a batch none of which was seen yet."""
        zeros = np.zeros(batch.rows, np.int64)
        done = zeros.astype(bool)
        return cls(batch, zeros, done, zeros.copy(), zeros.copy(), zeros.copy())


class Interpreter:
    """Follows batches from step to step. `experts` is the trace's number of experts."""

    def __init__(self, experts: int, *, token_ids: bool) -> None:
        self._experts = experts
        self._dtype = expert_dtype(experts)
        self._token_ids = token_ids
        self._progress: dict[int, Progress] = {}

    def traffic(self, step: Step) -> Traffic:
        """Tell the traffic of `step` from the rest, and follow its batch."""
        progress = self._of(step.batch)
        rows, columns = step.batch.rows, step.columns
        mask, before = _masks(step)
        padding = progress.padding if step.past else np.zeros(rows, np.int64)
        if before is not None:
            padding = (~before).sum(axis=1)
        place = (step.past - padding)[:, None] + np.cumsum(mask, axis=1) - 1
        column = step.past + np.arange(columns)
        prefill = np.broadcast_to(column < step.batch.prompt_width, (rows, columns))
        token_id = _token_ids(step)
        live = mask & ~_done(progress, step, token_id, prefill)[:, None]

        progress.padding = padding + (~mask).sum(axis=1)
        _raise_to(progress.prompt_tokens, place, mask & prefill)
        _raise_to(progress.length, place, live)
        progress.prompt_complete |= bool(column[-1] + 1 >= step.batch.prompt_width)
        request = step.batch.first_request + np.arange(rows)[:, None]
        position = _positions(progress, step, place, mask)
        return Traffic(
            live=live.reshape(-1),
            step=np.full(np.count_nonzero(live), step.index, np.int64),
            request=np.broadcast_to(request, live.shape)[live].astype(np.int32),
            position=np.broadcast_to(position, live.shape)[live].astype(np.int32),
            phase=np.where(prefill, Phase.PREFILL, Phase.DECODE)[live].astype(np.int8),
            token_id=token_id[live].astype(np.int32),
        )

    def decode_traffic(self, steps: Sequence[Step], routing: Routing) -> Traffic:
        """The same of S steps in a row of one batch, each a decode step (`is_decode`), at once.

        `routing` is theirs, joined.

        Decode steps are many and small: what `traffic` computes for each takes longer than they.
        """
        batch = steps[0].batch
        progress, rows = self._of(batch), batch.rows
        past = np.array([step.past for step in steps])[:, None]
        place = past - progress.padding  # [S, rows]
        token_id = np.full(place.shape, NO_TOKEN_ID)
        if steps[0].has_token_ids:
            token_id = routing.token_ids.reshape(place.shape)
        ended = progress.done[None]
        if batch.stop_ids:
            ended = ended | np.logical_or.accumulate(np.isin(token_id, batch.stop_ids), axis=0)
            progress.done = ended[-1]
        live = np.broadcast_to(~ended, place.shape)
        reached = np.where(live, place + 1, 0).max(axis=0)
        np.maximum(progress.length, reached, out=progress.length)
        request = np.broadcast_to(batch.first_request + np.arange(rows), live.shape)
        index = np.broadcast_to(np.array([step.index for step in steps])[:, None], live.shape)
        return Traffic(
            live=live.reshape(-1),
            step=index[live],
            request=request[live].astype(np.int32),
            position=(place + progress.offset)[live].astype(np.int32),
            phase=np.full(np.count_nonzero(live), Phase.DECODE, np.int8),
            token_id=token_id[live].astype(np.int32),
        )

    def packed_traffic(self, step: PackedStep) -> Traffic:
        """The traffic of a step whose requests are known; ids follow from its routing."""
        n = step.tokens
        total = n if step.routing is None else len(step.routing.token_ids)
        ids = np.full(n, NO_TOKEN_ID) if step.routing is None else step.routing.token_ids[:n]
        return Traffic(
            live=np.arange(total) < n,
            step=np.full(n, step.index, np.int64),
            request=step.request,
            position=step.position,
            phase=step.phase,
            token_id=ids.astype(np.int32),
        )

    def rows(self, routing: Routing, traffic: Traffic) -> TokenRows:
        """The rows of `traffic` with what the routers returned.

        An id that is no expert's (a router may mask a choice with -1) makes its layer null for
        that token.
        """
        live = traffic.live
        ids = routing["experts"][live]
        recorded = routing.recorded[live] & ((ids >= 0) & (ids < self._experts)).all(axis=2)
        return TokenRows(
            step=traffic.step,
            request=traffic.request,
            position=traffic.position,
            phase=traffic.phase,
            experts=ids.astype(self._dtype),
            recorded=None if recorded.all() else recorded,
            weights=_of(routing, "weights", live),
            margins=_of(routing, "margins", live),
            **self._of_next_layer(routing, live),
            token_id=traffic.token_id if self._token_ids else None,
        )

    def _of_next_layer(self, routing: Routing, live: NDArray[np.bool_]) -> dict[str, Any]:
        """What each layer but the last says of the next one."""
        ids, weights = (_of(routing, name, live) for name in ("next_experts", "next_weights"))
        if ids is None or weights is None:
            return {}
        return {
            "next_experts": ids[:, :-1].astype(self._dtype),
            "next_weights": weights[:, :-1],
        }

    def lose(self, batch: Batch) -> None:
        """A step of this batch is gone without a trace: the rest of it cannot be placed."""
        self._of(batch).lost = True

    def is_lost(self, batch: Batch) -> bool:
        """Whether `lose` was called for this batch."""
        return self._of(batch).lost

    def requests_of(self, batch: Batch, clock_base: float) -> list[Request]:
        """What is known by now of the requests of `batch`."""
        progress = self._of(batch)
        return [_request(progress, row, clock_base) for row in range(batch.requests)]

    def prompt_is_complete(self, batch: Batch) -> bool:
        """Whether the whole prompt of `batch` has been seen."""
        return self._of(batch).prompt_complete

    def finish(self, end: BatchEnd, clock_base: float) -> list[Request]:
        """The requests of a batch that has ended, for good."""
        requests = self.requests_of(end.batch, clock_base)
        if end.lengths is not None:
            requests = [
                replace(request, output_tokens=length if request.prompt_tokens else None)
                for request, length in zip(requests, end.lengths, strict=True)
            ]
        self._progress.pop(end.batch.first_request, None)
        return [_bounded(request, end.new_tokens) for request in requests]

    def batches(self) -> list[Batch]:
        """Batches that have not ended."""
        return [progress.batch for progress in self._progress.values()]

    def _of(self, batch: Batch) -> Progress:
        return self._progress.setdefault(batch.first_request, Progress.start(batch))


def _of(routing: Routing, field: str, live: NDArray[np.bool_]) -> NDArray[Any] | None:
    return routing[field][live] if field in routing else None


def is_decode(step: Step) -> bool:
    """Whether a step adds one token to every row, after their prompts, and says nothing more."""
    return (
        step.columns == 1
        and step.batch.beams is None
        and step.past >= step.batch.prompt_width
        and step.mask is None
        and step.positions is None
        and step.routing is not None
    )


def _masks(step: Step) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
    """[rows, columns] what is a token in this step, and [rows, past] before it where said."""
    rows, columns = step.batch.rows, step.columns
    if step.mask is None:
        return np.ones((rows, columns), bool), None
    mask = step.mask.array() != 0
    if mask.shape[1] == columns:
        return mask, None
    return mask[:, step.past :], mask[:, : step.past]


def _done(
    progress: Progress, step: Step, token_id: NDArray[Any], prefill: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """[rows] whether the row had ended before this step, and is only carried along.

    A forward of several new tokens on a cache holds the candidates of assisted decoding: an
    end among them may yet be rejected, so it says nothing.
    """
    if step.batch.stop_ids and (step.columns == 1 or step.recomputes):
        stops = np.isin(token_id, step.batch.stop_ids) & ~prefill
        progress.done = progress.done | stops.any(axis=1)
    return progress.done


def _token_ids(step: Step) -> NDArray[Any]:
    """[rows, columns] vocabulary ids, wherever the step holds them."""
    shape = (step.batch.rows, step.columns)
    if step.token_ids is not None:
        return step.token_ids.array()
    if step.routing is not None and step.has_token_ids:
        return step.routing.token_ids.reshape(shape)
    return np.full(shape, NO_TOKEN_ID)


def _positions(
    progress: Progress, step: Step, place: NDArray[Any], mask: NDArray[np.bool_]
) -> NDArray[Any]:
    """[rows, columns] where tokens stand: as the model was told, or as it was told last."""
    if step.positions is None:
        return place + progress.offset[:, None]
    positions = np.broadcast_to(step.positions.array(), place.shape)
    progress.offset = np.where(mask[:, -1], positions[:, -1] - place[:, -1], progress.offset)
    return positions


def _raise_to(length: NDArray[np.int64], place: NDArray[Any], where: NDArray[np.bool_]) -> None:
    """`length[row]` becomes at least one more than the last `place` of the row."""
    np.maximum(length, np.where(where, place + 1, 0).max(axis=1), out=length)


def _request(progress: Progress, row: int, clock_base: float) -> Request:
    place = progress.batch.row_of(row)
    prompt, length = int(progress.prompt_tokens[place]), int(progress.length[place])
    decoded = length - prompt
    known = progress.prompt_complete and not progress.lost
    return Request(
        index=progress.batch.first_request + row,
        label=progress.batch.labels[row],
        arrival_s=max(0.0, progress.batch.arrival - clock_base),
        prompt_tokens=prompt if known else None,
        # The token that ends a request is generated and never routed: one more than was decoded.
        output_tokens=decoded + 1 if known and decoded > 0 else None,
    )


def _bounded(request: Request, new_tokens: int | None) -> Request:
    """`generate` made at most `new_tokens`, and, where nothing was decoded, one."""
    if new_tokens is None or request.prompt_tokens is None:
        return request
    return replace(request, output_tokens=min(request.output_tokens or 1, new_tokens))
