"""What ranks recorded of one run, put together step by step as it streams by.

A step's rows are those of its data-parallel ranks one after the other. Of one such rank, the rows
of tensor-parallel ranks follow each other, and those of pipeline stages stand side by side: the
i-th of a step is the same token on each stage, unless their positions say otherwise, and then
request and position tell. A layer that no stage recorded for a token is not recorded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.trace.columns import concat_rows
from moeprof.trace.counts import copy_counts
from moeprof.trace.ranks import Rank
from moeprof.trace.reader import Trace
from moeprof.trace.rows import Request, TokenRows
from moeprof.trace.schema import RequestNames
from moeprof.trace.writer import TraceWriter

_ROWS = 4096  # that are read of a rank at once
UNREADABLE = "unreadable in a rank"

_HELD_REQUESTS = 4096  # that wait to be written together


def join_ranks(traces: Mapping[Rank, Trace], path: Path, *, complete: bool) -> None:
    """Write the `traces` of all ranks as the trace `path`, in memory of a few thousand rows each.

    It is complete if `complete` and every trace is. Requests are numbered anew, as they come.
    """
    numbers = count()
    groups = [
        _Group({rank: trace for rank, trace in traces.items() if rank.dp == dp}, numbers)
        for dp in sorted({rank.dp for rank in traces})
    ]
    with _writer(path, list(traces.values())) as writer:
        if writer.manifest.aggregate_steps is None:
            _write_rows(writer, groups)
            _put_requests(writer, groups)
        else:
            for trace in traces.values():
                copy_counts(trace, writer)
            writer.manifest.tokens = sum(group.most("tokens") for group in groups)
        for group in groups:
            group.add_counts(writer)
        _put_telemetry(writer, traces.values())
        writer.close(complete=complete and all(t.manifest.complete for t in traces.values()))


def _writer(path: Path, traces: Sequence[Trace]) -> TraceWriter:
    """An empty trace of the layers of all `traces`."""
    manifests = [trace.manifest for trace in traces]
    first = manifests[0]
    sizes = {n: size for manifest in manifests for n, size in manifest.expert_bytes.items()}
    return TraceWriter(
        path,
        traces[0].model,
        layers=sorted({layer for trace in traces for layer in trace.layers}),
        top_k=first.top_k,
        engine=first.engine,
        engine_version=first.engine_version,
        weights=first.weights,
        token_ids=first.token_ids,
        margins=first.margins,
        rank_ordered=first.rank_ordered,
        request_names=max((m.request_names for m in manifests), key=list(RequestNames).index),
        clock_base=min(manifest.clock_base for manifest in manifests),
        sampling=first.sampling.model_dump() if first.sampling else None,
        expert_bytes=sizes,
        aggregate_steps=first.aggregate_steps,
    )


def _write_rows(writer: TraceWriter, groups: Sequence[_Group]) -> None:
    """Rows of all groups in order of their steps, as far as all have been read."""
    cursors = [cursor for group in groups for cursor in group.cursors]
    layers = np.array(writer.manifest.layers)
    while any([cursor.fill() for cursor in cursors]):  # all of them
        ends = [cursor.last_step for cursor in cursors if not cursor.ended]
        until = min(ends) if ends else None
        parts = [part for group in groups if (part := group.take(until, layers)) is not None]
        if parts:
            rows = concat_rows(parts)
            writer.write(rows.select(np.argsort(rows.step, kind="stable")))


class _Cursor:
    """Rows of one rank, read a little ahead."""

    def __init__(self, trace: Trace) -> None:
        self.ended = False  # all rows have been read
        self._rows = trace.rows(_ROWS)
        self._held: list[TokenRows] = []

    @property
    def last_step(self) -> int:
        """The last step read, more rows of which may follow."""
        return int(self._held[-1].step[-1])

    def fill(self) -> bool:
        """Read on until rows of two steps are held, or all; whether any are."""
        while not self.ended and not (
            self._held and self._held[0].step[0] < self._held[-1].step[-1]
        ):
            rows = next(self._rows, None)
            self.ended = rows is None
            self._held += [] if rows is None else [rows]
        return bool(self._held)

    def take(self, until: int | None) -> TokenRows | None:
        """The rows held of steps before `until`, of all steps if None."""
        if not self._held:
            return None
        rows, self._held = concat_rows(self._held), []
        cut = len(rows) if until is None else int(np.searchsorted(rows.step, until))
        if cut < len(rows):
            self._held = [rows.select(slice(cut, None))]
        return rows.select(slice(0, cut)) if cut else None


@dataclass(frozen=True)
class _StageRows:
    """Rows of one pipeline stage in order of steps; `request` is known by number and space."""

    rows: TokenRows
    request: NDArray[np.int64]  # [T] as `_Numbering` knows them
    layers: tuple[int, ...]


class _Group:
    """The ranks of one data-parallel rank: every stage, and its tensor-parallel ranks."""

    def __init__(self, traces: Mapping[Rank, Trace], numbers: Iterator[int]) -> None:
        self.traces = traces
        self._cursors = {rank: _Cursor(trace) for rank, trace in traces.items()}
        self.numbering = _Numbering(traces, numbers)
        self._written = 0

    @property
    def cursors(self) -> list[_Cursor]:
        """Of all its ranks."""
        return list(self._cursors.values())

    def take(self, until: int | None, layers: NDArray[np.int64]) -> TokenRows | None:
        """The joined rows of steps before `until`, with a column for each of `layers`."""
        stages = [s for pp in self._stages() if (s := self._stage_rows(pp, until)) is not None]
        if not stages:
            return None
        rows = _side_by_side(stages, self.numbering, layers)
        self._written += len(rows)
        return rows

    def _stages(self) -> list[int]:
        return sorted({rank.pp for rank in self.traces})

    def _stage_rows(self, pp: int, until: int | None) -> _StageRows | None:
        parts, requests = [], []
        for rank, cursor in self._cursors.items():
            rows = cursor.take(until) if rank.pp == pp else None
            if rows is not None:
                parts.append(rows)
                requests.append(self.numbering.keys(rank, rows.request))
        if not parts:
            return None
        rows = concat_rows(parts)
        order = np.argsort(rows.step, kind="stable")
        layers = next(trace.layers for rank, trace in self.traces.items() if rank.pp == pp)
        return _StageRows(rows.select(order), np.concatenate(requests)[order], layers)

    def most(self, name: str) -> int:
        """Of the tokens that stages count under `name`, those of the stage that has most.

        Stages see the same tokens, tensor-parallel ranks of one stage other ones.
        """
        sums: defaultdict[int, int] = defaultdict(int)
        for rank, trace in self.traces.items():
            manifest = trace.manifest
            sums[rank.pp] += trace.tokens if name == "tokens" else getattr(manifest, name)
        return max(sums.values())

    def add_counts(self, writer: TraceWriter) -> None:
        """What was left out, and the tokens that no stage has: those of one are dropped nowhere.

        They are at most what the stage that lost least has lost.
        """
        lost: defaultdict[int, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        for rank, trace in self.traces.items():
            for reason, tokens in trace.manifest.dropped.items():
                lost[rank.pp][reason] += tokens
            lost[rank.pp][UNREADABLE] += max(0, trace.manifest.tokens - trace.tokens)
        least = min(self._stages(), key=lambda pp: sum(lost[pp].values()))
        for reason, tokens in lost[least].items():
            if tokens:
                writer.drop(tokens, reason)
        requests = max(trace.manifest.requests_sampled_out for trace in self.traces.values())
        writer.leave_out(self.most("tokens_sampled_out"), requests)
        writer.manifest.rotated_tokens += self.most("rotated_tokens")


class _Numbering:
    """Which requests of a group's ranks are one.

    Those of one name are. Without names, those of one number on tensor-parallel ranks of one
    stage are, which see the same batch, and those whose tokens stand side by side on two stages.
    """

    def __init__(self, traces: Mapping[Rank, Trace], numbers: Iterator[int]) -> None:
        self._numbers = numbers
        self._known: dict[int, int] = {}  # joined number by key
        self._named: dict[str, int] = {}  # joined number by name
        self._spaces: dict[Rank, int] = {}
        self._names: dict[int, str] = {}  # by key
        self._traces = traces
        for space, (rank, trace) in enumerate(traces.items()):
            told = self._names_tell(rank)
            self._spaces[rank] = 2 * space if told else 2 * rank.pp + 1
            for request in trace.requests:
                if request.name is not None:
                    self._names[self._key(rank, request.index)] = request.name

    def _names_tell(self, rank: Rank) -> bool:
        """Whether names say which requests of this rank are those of others of its stage.

        Hashes do not if each rank made them under a key of its own: then they share none.
        """
        names = _names(self._traces[rank])
        if self._traces[rank].manifest.request_names is RequestNames.PLAIN:
            return bool(names)
        others = (r for r in self._traces if r.pp == rank.pp and r != rank)
        return any(names & _names(self._traces[other]) for other in others)

    def _key(self, rank: Rank, request: int) -> int:
        return (self._spaces[rank] << 32) + request

    def keys(self, rank: Rank, request: NDArray[np.int32]) -> NDArray[np.int64]:
        """`request` with what tells whose number it is; -1 stays."""
        keys = request.astype(np.int64) + (self._spaces[rank] << 32)
        return np.where(request < 0, np.int64(-1), keys)

    def same(self, ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> None:
        """Take note that these keys are of the same requests, pair by pair."""
        pairs, first = np.unique(np.stack([ours, theirs], axis=1), axis=0, return_index=True)
        for mine, other in pairs[np.argsort(first)].tolist():
            if mine >= 0 and other >= 0:
                known = self._find(mine), self._find(other)
                number = next((n for n in known if n is not None), None)
                number = next(self._numbers) if number is None else number
                self._note(mine, number)
                self._note(other, number)

    def joined(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """The joined numbers of `keys`; one that is not known is a new request."""
        distinct, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        numbers = np.full(len(distinct), -1, np.int32)
        for place in np.argsort(first).tolist():
            if distinct[place] >= 0:
                numbers[place] = self._number(int(distinct[place]))
        return numbers[inverse]

    def requests(self, clock_base: float) -> Iterator[Request]:
        """What ranks know of the joined requests, times counted from `clock_base`."""
        known: defaultdict[int, list[Request]] = defaultdict(list)
        lead = next(iter(self._traces))
        for rank, trace in self._traces.items():
            later = trace.manifest.clock_base - clock_base
            for request in trace.requests:
                key = self._key(rank, request.index)
                if rank == lead or self._find(key) is not None or key in self._names:
                    arrival = None if request.arrival_s is None else request.arrival_s + later
                    known[self._number(key)].append(replace(request, arrival_s=arrival))
        for number, requests in sorted(known.items()):
            yield _combined(number, requests)

    def _find(self, key: int) -> int | None:
        if key in self._known or key not in self._names:
            return self._known.get(key)
        return self._named.get(self._names[key])

    def _number(self, key: int) -> int:
        number = self._find(key)
        number = next(self._numbers) if number is None else number
        self._note(key, number)
        return number

    def _note(self, key: int, number: int) -> None:
        self._known.setdefault(key, number)
        if key in self._names:
            self._named.setdefault(self._names[key], number)


def _names(trace: Trace) -> set[str]:
    return {request.name for request in trace.requests if request.name is not None}


def _combined(number: int, requests: Sequence[Request]) -> Request:
    """One request of what several ranks know of it; who was cut off knows of fewer tokens."""

    def known(name: str) -> list[Any]:
        return [value for r in requests if (value := getattr(r, name)) is not None]

    return Request(
        number,
        label=next(iter(known("label")), None),
        arrival_s=min(known("arrival_s"), default=None),
        prompt_tokens=max(known("prompt_tokens"), default=None),
        output_tokens=max(known("output_tokens"), default=None),
        name=next(iter(known("name")), None),
    )


def _side_by_side(
    stages: Sequence[_StageRows], numbering: _Numbering, layers: NDArray[np.int64]
) -> TokenRows:
    """The rows of all `stages`, each once, with a column for each of `layers`."""
    places, tokens = _places(stages, numbering)
    first = stages[0].rows
    shape = (tokens, len(layers), first.experts.shape[2])
    joined: dict[str, NDArray[Any]] = {
        name: np.full(tokens, -1, getattr(first, name).dtype)
        for name in ("step", "request", "position", "phase", "token_id")
        if getattr(first, name) is not None
    }
    recorded = np.zeros(shape[:2], bool)
    experts = np.zeros(shape, first.experts.dtype)
    weights = None if first.weights is None else np.zeros(shape, np.float16)
    margins = None if first.margins is None else np.full(shape[:2], np.nan, np.float16)
    for stage, place in reversed(list(zip(stages, places, strict=True))):  # the first stage stands
        rows = replace(stage.rows, request=numbering.joined(stage.request))
        for name, column in joined.items():
            column[place] = getattr(rows, name)
        at = np.ix_(place, np.searchsorted(layers, stage.layers))
        recorded[at] = True if rows.recorded is None else rows.recorded
        experts[at] = rows.experts
        if weights is not None:
            weights[at] = rows.weights
        if margins is not None:
            margins[at] = rows.margins
    return TokenRows(
        **joined,
        experts=experts,
        recorded=None if recorded.all() else recorded,
        weights=weights,
        margins=margins,
    )


def _places(
    stages: Sequence[_StageRows], numbering: _Numbering
) -> tuple[list[NDArray[np.int64]], int]:
    """Where the rows of each stage stand among the joined ones, and how many those are."""
    first = stages[0]
    if all(_same_tokens(first.rows, stage.rows) for stage in stages[1:]):
        for stage in stages[1:]:
            numbering.same(first.request, stage.request)
        return [np.arange(len(first.rows))] * len(stages), len(first.rows)
    places = [np.zeros(len(stage.rows), np.int64) for stage in stages]
    tokens = 0
    for step in np.unique(np.concatenate([stage.rows.step for stage in stages])).tolist():
        spans = [slice(*np.searchsorted(s.rows.step, [step, step + 1])) for s in stages]
        tokens += _place_step(stages, spans, numbering, places, tokens)
    return places, tokens


def _place_step(
    stages: Sequence[_StageRows],
    spans: Sequence[slice],
    numbering: _Numbering,
    places: Sequence[NDArray[np.int64]],
    start: int,
) -> int:
    """Set the places of one step's rows from `start` on; how many there are."""
    held = [(n, span) for n, span in enumerate(spans) if span.stop > span.start]
    lead, lead_span = held[0]
    rows = stages[lead].rows.select(lead_span)
    if all(_same_tokens(rows, stages[n].rows.select(span)) for n, span in held[1:]):
        for n, span in held:
            if n != lead:
                numbering.same(stages[lead].request[lead_span], stages[n].request[span])
            places[n][span] = np.arange(start, start + len(rows))
        return len(rows)
    order: dict[tuple[int, int, int], int] = {}
    for n, span in held:
        seen: defaultdict[tuple[int, int], int] = defaultdict(int)
        request = numbering.joined(stages[n].request[span]).tolist()
        position = stages[n].rows.position[span].tolist()
        for row, token in enumerate(zip(request, position, strict=True), span.start):
            places[n][row] = start + order.setdefault((*token, seen[token]), len(order))
            seen[token] += 1
    return len(order)


def _same_tokens(ours: TokenRows, theirs: TokenRows) -> bool:
    """Whether two stages have as many tokens of the same steps at the same positions."""
    return np.array_equal(ours.step, theirs.step) and np.array_equal(ours.position, theirs.position)


def _put_requests(writer: TraceWriter, groups: Sequence[_Group]) -> None:
    requests = (r for group in groups for r in group.numbering.requests(writer.clock_base))
    for number, request in enumerate(requests, 1):
        writer.put_request(request)
        if number % _HELD_REQUESTS == 0:
            writer.flush()


def _put_telemetry(writer: TraceWriter, traces: Any) -> None:
    """Samples of all ranks in order of time, those that two ranks of one machine took once."""
    samples = {
        replace(sample, time_s=sample.time_s + trace.manifest.clock_base - writer.clock_base)
        for trace in traces
        for sample in trace.telemetry
    }
    for number, sample in enumerate(sorted(samples, key=lambda s: (s.time_s, s.device)), 1):
        writer.put_telemetry(sample)
        if number % _HELD_REQUESTS == 0:
            writer.flush()
