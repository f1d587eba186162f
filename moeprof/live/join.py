"""Rows of several ranks as steps of the whole engine: a step is whole once every rank is past it.

Data-parallel ranks run in lockstep, so their rows of a step are one batch of each layer. Pipeline
ranks see the same tokens in other layers: each row then has the layers of its rank, and the token
is counted once.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from moeprof.live.counts import WindowCounts
from moeprof.live.source import Shape, StepRows
from moeprof.trace import Phase, TokenRows
from moeprof.trace.ranks import Rank

LAG_SECONDS = 1.5  # a rank that brings nothing for longer is not waited for


def counting_ranks(ranks: Sequence[Rank]) -> list[bool]:
    """Whether a rank's rows count as tokens: those of the first pipeline stage that is there."""
    first: dict[tuple[int, int], int] = {}
    for rank in ranks:
        key = (rank.dp, rank.tp)
        first[key] = min(first.get(key, rank.pp), rank.pp)
    return [rank.pp == first[rank.dp, rank.tp] for rank in ranks]


def dropped_by_reason(dropped: Iterable[tuple[Rank, Mapping[str, int]]]) -> dict[str, int]:
    """Tokens by reason: of pipeline ranks, which see the same tokens, of the one that lost most."""
    most: dict[tuple[int, int], Counter[str]] = {}
    for rank, reasons in dropped:
        key = (rank.dp, rank.tp)
        most[key] = most.get(key, Counter()) | Counter(reasons)
    total: Counter[str] = Counter()
    for counts in most.values():
        total += counts
    return dict(sorted(total.items()))


class StepJoin:
    """Holds what ranks bring until steps are whole. `layers` are those of each rank, native."""

    def __init__(
        self, ranks: Sequence[Rank], layers: Sequence[Sequence[int]], shape: Shape
    ) -> None:
        place = {layer: i for i, layer in enumerate(shape.layers)}
        self._shape = shape
        self._columns = [np.array([place[layer] for layer in own], np.int64) for own in layers]
        self._counted = counting_ranks(ranks)
        self._order = sorted(range(len(ranks)), key=lambda i: ranks[i])
        self._held: list[dict[int, StepRows]] = [{} for _ in ranks]
        self._newest = [-1] * len(ranks)
        self._marks: deque[tuple[float, int]] = deque()  # the newest step at a moment
        self._settled = -1  # up to this step nothing more is waited for

    def push(self, rank: int, rows: TokenRows) -> None:
        """Rows of rank number `rank`, in order of step."""
        for part in _split(rows):
            step = part.step
            whole = self._widened(rank, part)
            before = self._held[rank].get(step)
            self._held[rank][step] = whole if before is None else _together(step, [before, whole])
            self._newest[rank] = max(self._newest[rank], step)

    def take(self, now_s: float, *, rest: bool = False) -> list[StepRows]:
        """The steps that are whole, in order; with `rest` all that is held.

        A rank that brings nothing is waited for a moment: it may have no traffic at all.
        """
        held = sorted(set().union(*self._held))
        self._marks.append((now_s, max(self._newest, default=-1)))
        while now_s - self._marks[0][0] >= LAG_SECONDS:
            self._settled = self._marks.popleft()[1]
        if not rest:
            stop = max(min(self._newest, default=0), self._settled + 1)
            held = [step for step in held if step < stop]
        return [self._joined(step) for step in held]

    def widened(self, rank: int, counts: WindowCounts) -> WindowCounts:
        """Counts of a rank over the layers of all."""
        load = np.zeros((len(self._shape.layers), counts.load.shape[1]), np.int64)
        load[self._columns[rank]] = counts.load
        tokens = (counts.tokens, counts.prefill_tokens) if self._counted[rank] else (0, 0)
        return WindowCounts(load, *tokens)

    def _joined(self, step: int) -> StepRows:
        parts = [self._held[i].pop(step) for i in self._order if step in self._held[i]]
        return parts[0] if len(parts) == 1 else _together(step, parts)

    def _widened(self, rank: int, rows: StepRows) -> StepRows:
        """`rows` over the layers of all ranks."""
        columns, counted = self._columns[rank], None
        if not self._counted[rank]:
            counted = np.zeros(len(rows.phase), bool)
        if np.array_equal(columns, np.arange(len(self._shape.layers))):
            return rows._replace(counted=counted)
        places = (len(rows.phase), len(self._shape.layers))
        experts = np.zeros((*places, rows.experts.shape[2]), rows.experts.dtype)
        experts[:, columns] = rows.experts
        recorded = np.zeros(places, bool)
        recorded[:, columns] = True if rows.recorded is None else rows.recorded
        return rows._replace(experts=experts, recorded=recorded, counted=counted)


def _split(rows: TokenRows) -> Iterator[StepRows]:
    """The steps of `rows`."""
    phase = rows.phase
    if phase is None:
        phase = np.full(len(rows), Phase.UNKNOWN, np.int8)
    bounds = [0, *(np.flatnonzero(np.diff(rows.step)) + 1).tolist(), len(rows)]
    for start, stop in itertools.pairwise(bounds):
        if stop > start:
            here = slice(start, stop)
            recorded = None if rows.recorded is None else rows.recorded[here]
            yield StepRows(int(rows.step[start]), phase[here], rows.experts[here], recorded)


def _together(step: int, parts: Sequence[StepRows]) -> StepRows:
    """Rows of one step, one part after the other."""
    recorded = counted = None
    if any(part.recorded is not None for part in parts):
        recorded = np.concatenate([_mask(p.recorded, p.experts.shape[:2]) for p in parts])
    if any(part.counted is not None for part in parts):
        counted = np.concatenate([_mask(p.counted, p.phase.shape) for p in parts])
    return StepRows(
        step,
        np.concatenate([part.phase for part in parts]),
        np.concatenate([part.experts for part in parts]),
        recorded,
        counted,
    )


def _mask(mask: NDArray[np.bool_] | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.ones(shape, bool) if mask is None else mask
