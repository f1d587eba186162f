"""Polling a source and keeping the figures of its window."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from moeprof.errors import InputError
from moeprof.live.figures import LiveFigures, Rates, live_figures
from moeprof.live.lru import LruCaches
from moeprof.live.source import Poll, Shape, Source, State, Status
from moeprof.live.tally import Window, tally_counts, tally_step

RATE_SECONDS = 10.0
SHARES = (1 / 8, 1 / 4, 1 / 2)  # of the experts of a layer: sizes of caches where none are given
MAX_SLOTS = 8  # sizes of caches


class _Totals(NamedTuple):
    """Tokens recorded up to a moment."""

    time_s: float
    tokens: int
    prefill: int
    decode: int


class Watch:
    """The figures of `source`, a poll at a time; caches are warm from the first poll on.

    `slots` are sizes of caches a layer, parts of its experts if None; the window is `steps` steps
    or `seconds` long. Raises InputError on sizes or lengths that cannot be.
    """

    def __init__(
        self,
        source: Source,
        *,
        slots: Sequence[int] | None = None,
        steps: int | None = None,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._asked = None if slots is None else sorted(set(slots))
        if self._asked is not None and not _sound(self._asked):
            raise InputError(f"slots {list(slots or ())}: give up to {MAX_SLOTS} sizes from 1 on")
        self._source = source
        self._steps, self._seconds = steps, seconds
        self._window = self._new_window(Shape((0,), 1, 1), 0)  # refuses now what cannot be
        self._slots: list[int] = []
        self._caches = LruCaches(1, 1, [])
        self._clock = clock
        self._identity: tuple[int, Shape] | None = None
        self._totals: deque[_Totals] = deque()
        self.figures = live_figures(source.name, Status(State.WAITING), Rates(), None, [])
        self.behind = False  # there is more to read at once

    def poll(self) -> LiveFigures:
        """The figures as they are now."""
        poll = self._source.poll()
        now = self._clock()
        status, self.behind = poll.status, poll.behind
        if status.shape is not None:
            self._begin(status.epoch, status.shape)
            self._take(poll, status.shape, now)
        rates = self._rates(status, now)
        tally = self._window.total if self._identity else None
        self.figures = live_figures(self._source.name, status, rates, tally, self._slots)
        return self.figures

    def caught_up(self) -> LiveFigures:
        """The figures once everything that is there has been read."""
        figures = self.poll()
        while self.behind:
            figures = self.poll()
        return figures

    def follow(
        self, interval_s: float, sleep: Callable[[float], None] = time.sleep
    ) -> Iterator[LiveFigures]:
        """The figures at every interval, and in between while there is more to read, to the end."""
        while True:
            figures = self.poll()
            yield figures
            if self.behind:
                continue
            if figures.state == State.ENDED.value:
                return
            sleep(interval_s)

    def _new_window(self, shape: Shape, sizes: int) -> Window:
        return Window(shape, sizes, steps=self._steps, seconds=self._seconds)

    def _begin(self, epoch: int, shape: Shape) -> None:
        """Start anew if this is another recording."""
        if self._identity == (epoch, shape):
            return
        self._identity = (epoch, shape)
        shares = sorted({max(1, round(share * shape.experts)) for share in SHARES})
        self._slots = shares if self._asked is None else self._asked
        self._window = self._new_window(shape, len(self._slots))
        self._caches = LruCaches(len(shape.layers), shape.experts, self._slots)
        self._totals.clear()

    def _take(self, poll: Poll, shape: Shape, now: float) -> None:
        for rows in poll.steps:
            self._window.add(tally_step(rows, shape, self._caches, len(self._slots)), now)
        for counts in poll.counts:
            self._window.add(tally_counts(counts, shape, len(self._slots)), now)
        self._window.expire(now)

    def _rates(self, status: Status, now: float) -> Rates:
        """Over the last seconds; what was there before we looked is no rate."""
        if status.state is State.GONE:
            self._totals.clear()
            return Rates()
        totals = self._totals
        if not self.behind:
            totals.append(_Totals(now, status.tokens, status.prefill_tokens, status.decode_tokens))
        while len(totals) > 2 and now - totals[1].time_s >= RATE_SECONDS:
            totals.popleft()
        if len(totals) < 2 or totals[-1].time_s <= totals[0].time_s:
            return Rates()
        first, last = totals[0], totals[-1]
        seconds = last.time_s - first.time_s
        total, prefill, decode = (max(0, last[i] - first[i]) / seconds for i in (1, 2, 3))
        return Rates(total, prefill, decode)


def _sound(slots: Sequence[int]) -> bool:
    return 1 <= len(slots) <= MAX_SLOTS and min(slots) >= 1
