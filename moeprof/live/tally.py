"""Sums over steps that add and subtract, and the window that slides over them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.live.counts import WindowCounts
from moeprof.live.lru import LruCaches
from moeprof.live.source import Shape, StepRows
from moeprof.trace import Phase

MAX_STEPS = 10_000  # of a window in steps: each keeps its loads, 30 KB for M3's shape


@dataclass
class Tally:
    """Sums over steps. L layers, E experts, S cache sizes.

    Decode rows are those not known to be of a prompt. An event is a layer in a step with such rows.
    """

    steps: int
    tokens: int
    prefill_tokens: int
    load: NDArray[Any]  # [L, E] assignments
    decode_load: NDArray[Any]  # [L, E] of decode rows
    events: NDArray[np.int64]  # [L]
    distinct: NDArray[np.int64]  # [L] experts that events need, which are accesses to the caches
    hits: NDArray[np.int64]  # [S, L]
    # [L] events by decode rows of an event
    sizes: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    @classmethod
    def empty(cls, shape: Shape, sizes: int) -> Tally:
        """Of no steps, with caches of `sizes` sizes."""
        layers = len(shape.layers)
        load = np.zeros((2, layers, shape.experts), np.int64)
        none = np.zeros(layers, np.int64)
        hits = np.zeros((sizes, layers), np.int64)
        return cls(0, 0, 0, load[0], load[1], none, none.copy(), hits)

    def move(self, other: Tally, sign: int) -> None:
        """Add `other`, or take it away again with `sign` -1."""
        self.steps += sign * other.steps
        self.tokens += sign * other.tokens
        self.prefill_tokens += sign * other.prefill_tokens
        for name in ("load", "decode_load", "events", "distinct", "hits"):
            mine = getattr(self, name)
            mine += sign * getattr(other, name)
        for size, events in other.sizes.items():
            left = self.sizes.get(size, 0) + sign * events
            self.sizes[size] = left
            if not left.any():
                del self.sizes[size]


def tally_step(rows: StepRows, shape: Shape, caches: LruCaches, sizes: int) -> Tally:
    """The sums of one step, which `caches` of `sizes` sizes see."""
    prompt = rows.phase == Phase.PREFILL
    counted = rows.counted
    load = _load(rows.experts, rows.recorded, shape)
    tally = Tally.empty(shape, sizes)
    tally.steps, tally.load, tally.decode_load = 1, load, load
    tally.tokens = len(prompt) if counted is None else int(counted.sum())
    tally.prefill_tokens = int((prompt if counted is None else prompt & counted).sum())
    if prompt.any():
        rows = _kept(rows, ~prompt)
        tally.decode_load = _load(rows.experts, rows.recorded, shape)
    if not len(rows.phase):
        return tally
    recorded = None if rows.recorded is None else rows.recorded.T
    looked = caches.look_up(rows.experts.swapaxes(0, 1), recorded)
    tally.distinct, tally.hits = looked
    tally.events = (looked.distinct > 0).astype(np.int64)
    tally.sizes = _sizes(len(rows.phase), recorded, tally.events)
    return tally


def tally_counts(counts: WindowCounts, shape: Shape, sizes: int) -> Tally:
    """The sums of a window of counts, of which the order of tokens is not known: load alone."""
    tally = Tally.empty(shape, sizes)
    tally.steps, tally.load = 1, counts.load
    tally.tokens, tally.prefill_tokens = counts.tokens, counts.prefill_tokens
    return tally


def _kept(rows: StepRows, kept: NDArray[np.bool_]) -> StepRows:
    recorded = None if rows.recorded is None else rows.recorded[kept]
    return rows._replace(phase=rows.phase[kept], experts=rows.experts[kept], recorded=recorded)


def _load(
    experts: NDArray[np.unsignedinteger], recorded: NDArray[np.bool_] | None, shape: Shape
) -> NDArray[np.int32]:
    """[L, E] assignments of `experts` [T, L, k]."""
    layers, size = len(shape.layers), shape.experts
    cells = experts + (np.arange(layers, dtype=np.int32) * size)[:, None]
    counted = cells.reshape(-1) if recorded is None else cells[recorded].reshape(-1)
    return np.bincount(counted, minlength=layers * size).astype(np.int32).reshape(layers, size)


def _sizes(
    rows: int, recorded: NDArray[np.bool_] | None, events: NDArray[np.int64]
) -> dict[int, NDArray[np.int64]]:
    """[L] events by their rows; `recorded` is [L, T]."""
    if recorded is None:
        return {rows: events}
    each = recorded.sum(axis=1)
    return {int(n): (each == n).astype(np.int64) for n in np.unique(each) if n}


class Window:
    """The last `steps` steps, or what came in the last `seconds`. Give one of them.

    Raises InputError on a length that cannot be.
    """

    def __init__(
        self, shape: Shape, sizes: int, *, steps: int | None, seconds: float | None
    ) -> None:
        if (steps is None) == (seconds is None):
            raise InputError("a window is so many steps or so many seconds long: give one of them")
        if steps is not None and not 1 <= steps <= MAX_STEPS:
            raise InputError(f"window of {steps:,} steps: it takes 1 to {MAX_STEPS:,}, or a time")
        if seconds is not None and not 0 < seconds < float("inf"):
            raise InputError(f"window of {seconds} s: it must be above 0")
        self.total = Tally.empty(shape, sizes)
        self._steps, self._seconds = steps, seconds
        self._parts: deque[tuple[float, Tally]] = deque()

    def add(self, tally: Tally, time_s: float) -> None:
        """One more step, seen at `time_s`."""
        self.total.move(tally, 1)
        if self._seconds is not None and self._parts and self._parts[-1][0] == time_s:
            self._parts[-1][1].move(tally, 1)  # they will go together
        elif self._seconds is not None:
            self._parts.append((time_s, _copy(tally)))
        else:
            self._parts.append((time_s, tally))
        while self._steps is not None and len(self._parts) > self._steps:
            self._let_go()

    def expire(self, time_s: float) -> None:
        """Let go what is older than the window at `time_s`."""
        while self._seconds is not None and self._parts and self._is_old(time_s):
            self._let_go()

    def _is_old(self, time_s: float) -> bool:
        return self._seconds is not None and time_s - self._parts[0][0] > self._seconds

    def _let_go(self) -> None:
        self.total.move(self._parts.popleft()[1], -1)


def _copy(tally: Tally) -> Tally:
    """One that other tallies can be added to: a step's two loads may be one array, and narrow."""
    sizes: Mapping[int, NDArray[np.int64]] = tally.sizes
    return Tally(
        tally.steps,
        tally.tokens,
        tally.prefill_tokens,
        tally.load.astype(np.int64),
        tally.decode_load.astype(np.int64),
        tally.events.copy(),
        tally.distinct.copy(),
        tally.hits.copy(),
        {size: events.copy() for size, events in sizes.items()},
    )
