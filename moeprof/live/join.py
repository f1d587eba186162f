"""Rows of several ranks as steps of the whole engine: a step is whole once every rank is past it.

Data-parallel ranks run in lockstep, so their rows of a step are one batch of each layer. Pipeline
ranks see the same tokens in other layers: each row then has the layers of its rank, and the token
is counted once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.live.source import Shape, StepRows
from moeprof.trace import Phase, TokenRows

MAX_HELD_STEPS = 512  # a rank that lags further is not waited for


class Rank(NamedTuple):
    """Where a rank stands in the engine."""

    dp: int = 0
    pp: int = 0
    tp: int = 0

    def __str__(self) -> str:
        return f"dp{self.dp} pp{self.pp} tp{self.tp}"


def counting_ranks(ranks: Sequence[Rank]) -> list[bool]:
    """Whether a rank's rows count as tokens: those of the first pipeline stage that is there."""
    first: dict[tuple[int, int], int] = {}
    for rank in ranks:
        key = (rank.dp, rank.tp)
        first[key] = min(first.get(key, rank.pp), rank.pp)
    return [rank.pp == first[rank.dp, rank.tp] for rank in ranks]


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

    def push(self, rank: int, rows: TokenRows) -> None:
        """Rows of rank number `rank`, in order of step."""
        for part in _split(rows):
            step = part.step
            whole = self._widened(rank, part)
            before = self._held[rank].get(step)
            self._held[rank][step] = whole if before is None else _together(step, [before, whole])
            self._newest[rank] = max(self._newest[rank], step)

    def take(self, *, rest: bool = False) -> list[StepRows]:
        """The steps that every rank is past, in order; with `rest` all that is held."""
        held = sorted(set().union(*self._held))
        if not rest:
            stop = min(self._newest, default=0)
            late = held[-MAX_HELD_STEPS] if len(held) > MAX_HELD_STEPS else 0
            held = [step for step in held if step < max(stop, late)]
        return [self._joined(step) for step in held]

    def _joined(self, step: int) -> StepRows:
        parts = [self._held[i].pop(step) for i in self._order if step in self._held[i]]
        return parts[0] if len(parts) == 1 else _together(step, parts)

    def _widened(self, rank: int, rows: StepRows) -> StepRows:
        """`rows` over the layers of all ranks."""
        columns, counted = self._columns[rank], None
        if not self._counted[rank]:
            counted = np.zeros(len(rows.phase), bool)
        if len(columns) == len(self._shape.layers):
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
