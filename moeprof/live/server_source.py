"""A server that has the plugin as a source: one question a poll, for its status and newest rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from moeprof.capture.http import HttpClient, HttpError
from moeprof.errors import InputError, MoeprofError
from moeprof.live.answers import AnswerError, RankAnswer, RecentAnswer, read_answer, rows_of
from moeprof.live.join import StepJoin, counting_ranks, dropped_by_reason
from moeprof.live.source import Poll, RankStatus, Shape, State, Status, StepRows
from moeprof.trace import TokenRows
from moeprof.trace.ranks import Rank

TIMEOUT_S = 10.0
ANSWER_BYTES = 64 << 20  # of all ranks
RANK_BYTES = 4 << 20  # asked of one rank
_MAX_WORDS = 300


class _Recording(NamedTuple):
    """What makes a recording another one."""

    ranks: tuple[Rank, ...]
    layers: tuple[tuple[int, ...], ...]
    paths: tuple[str | None, ...]
    processes: tuple[int | None, ...]


class ServerSource:
    """The server at `url`. `token` is sent to it alone.

    A server that goes away later is waited for, and the last status stays. At the first poll it
    must be there, unless `follow`, and have the plugin: MoeprofError or InputError if not.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        follow: bool = False,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = HttpClient(url, token=token, timeout_s=timeout_s, max_bytes=ANSWER_BYTES)
        self.name = self._client.url
        self._follow = follow
        self._clock = clock
        self._last = Status(State.WAITING)
        self._answered = False
        self._gone_since: float | None = None
        self._errors = 0
        self._epoch = 0
        self._recording: _Recording | None = None
        self._shape: Shape | None = None
        self._seen: list[int] = []  # last step of each rank
        self._total = 0  # tokens recorded, at the last poll
        self._rows = 0  # of them, seen so far
        self._before: int | None = None  # recorded before watching began

    def poll(self) -> Poll:
        """Ask once; twice where another recording has begun, to have its first steps too."""
        try:
            answer = self._ask(min(self._seen, default=-1))
            if self._is_another(answer):
                self._begin(answer)
                answer = self._ask(-1) if self._answered else answer
            steps = self._take(answer)
        except (HttpError, AnswerError) as error:
            return Poll(self._failed(error))
        self._answered, self._gone_since = True, None
        self._last = self._status(answer)
        return Poll(self._last, steps)

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def _ask(self, after: int) -> RecentAnswer:
        size = min(RANK_BYTES, ANSWER_BYTES // 2 // max(len(self._seen), 1))
        return read_answer(self._client.get(f"/moeprof/recent?after={after}&max_bytes={size}"))

    def _failed(self, error: MoeprofError) -> Status:
        """The last status with why there is no newer one; raises if there never was one."""
        self._errors += 1
        refused = _refusal(self.name, error)
        if not self._answered and (refused is not None or not self._follow):
            raise refused or MoeprofError(f"{self.name}: {_reason(error)}")
        now = self._clock()
        since = self._gone_since = self._gone_since or now
        when = time.strftime("%H:%M:%S", time.localtime(since))
        words = f"nothing new since {when}: {_reason(refused or error)}"[:_MAX_WORDS]
        self._last = replace(self._last, state=State.GONE, words=words, errors=self._errors)
        return self._last

    def _is_another(self, answer: RecentAnswer) -> bool:
        before, self._total = self._total, _recorded(answer)
        return self._total < before or self._identity(answer) != self._recording

    def _identity(self, answer: RecentAnswer) -> _Recording:
        """A recording that has ended may no longer have a path; it is still the same."""
        shown = [rank for rank in answer.ranks if rank.shown]
        paths = tuple(rank.path for rank in shown)
        if self._recording and not answer.recording and not any(paths):
            paths = self._recording.paths
        return _Recording(
            tuple(rank.place for rank in shown),
            tuple(tuple(rank.layers) for rank in shown),
            paths,
            tuple(rank.process for rank in shown),
        )

    def _begin(self, answer: RecentAnswer) -> None:
        """Another recording: its steps and totals begin anew."""
        shown = [rank for rank in answer.ranks if rank.shown]
        self._epoch += 1
        self._recording = self._identity(answer)
        self._seen = [-1] * len(shown)
        self._rows = 0
        self._before = None if self._epoch == 1 else 0
        self._shape = None
        if shown:
            layers = sorted({layer for rank in shown for layer in rank.layers})
            self._shape = Shape(tuple(layers), shown[0].experts, shown[0].top_k)
            places = [rank.place for rank in shown]
            self._join = StepJoin(places, [rank.layers for rank in shown], self._shape)

    def _take(self, answer: RecentAnswer) -> list[StepRows]:
        """The steps that are whole now."""
        if self._identity(answer) != self._recording:
            raise AnswerError("another recording began between two questions")
        shown = [rank for rank in answer.ranks if rank.shown]
        parts = [rows_of(rank) for rank in shown]  # all, before any is taken
        counting = counting_ranks([rank.place for rank in shown])
        brought = False
        for number, batches in enumerate(parts):
            for rows in batches:
                first = int(np.searchsorted(rows.step, self._seen[number], side="right"))
                if first == len(rows):
                    continue
                fresh = rows if first == 0 else _from(rows, first)
                self._join.push(number, fresh)
                self._seen[number] = int(fresh.step[-1])
                self._rows += len(fresh) * counting[number]
                brought = True
        return self._join.take(self._clock(), rest=not brought) if shown else []

    def _status(self, answer: RecentAnswer) -> Status:
        writing = [rank for rank in answer.ranks if rank.writes]
        total = _recorded(answer)
        if self._before is None:
            self._before = max(0, total - self._rows)
        counted = _counted(answer)
        first = writing[0] if writing else RankAnswer()
        return Status(
            state=State.RECORDING if answer.recording else State.WAITING,
            words=self._words(answer),
            epoch=self._epoch,
            shape=self._shape,
            model=first.model,
            engine=f"{first.engine} {first.engine_version}".strip(),
            tokens=sum(rank.tokens for rank in counted),
            prefill_tokens=sum(rank.prefill_tokens for rank in counted),
            decode_tokens=sum(rank.decode_tokens for rank in counted),
            unseen_tokens=max(0, total - self._before - self._rows),
            dropped=dropped_by_reason((rank.place, rank.dropped) for rank in writing),
            sampled_out=sum(rank.sampled_out for rank in counted),
            rotated=sum(rank.rotated for rank in counted),
            pending_bytes=sum(rank.pending_bytes or 0 for rank in writing),
            ranks=tuple(_rank_status(rank) for rank in answer.ranks),
            errors=self._errors,
        )

    def _words(self, answer: RecentAnswer) -> str:
        """What is wrong, or how to begin."""
        failed = [f"{rank.place}: {rank.error}" for rank in answer.ranks if rank.error]
        if failed:
            return " ".join(failed[0].split())[:_MAX_WORDS]
        if answer.recording:
            return ""
        return f"nothing is being recorded: moeprof capture start --url {self.name} -o TRACE"


def _counted(answer: RecentAnswer) -> list[RankAnswer]:
    """The ranks whose tokens are those of the server."""
    writing = [rank for rank in answer.ranks if rank.writes]
    counting = counting_ranks([rank.place for rank in writing])
    return [rank for rank, counts in zip(writing, counting, strict=True) if counts]


def _recorded(answer: RecentAnswer) -> int:
    return sum(rank.tokens + rank.rotated for rank in _counted(answer))


def _reason(error: MoeprofError) -> str:
    """Without the address that it begins with, which in our question is long."""
    first, colon, rest = str(error).partition(": ")
    return rest if colon and "://" in first else str(error)


def _refusal(url: str, error: MoeprofError) -> MoeprofError | None:
    """What to do about a server that answers, and not with what it should; None if it is down."""
    status = error.status if isinstance(error, HttpError) else None
    if status == 404:
        return InputError(
            f"{url}: no recording plugin answers there; start the server with "
            "'moeprof capture vllm -- ...', or with moeprof in VLLM_PLUGINS"
        )
    if status in (401, 403):
        said = error.said if isinstance(error, HttpError) else ""
        return InputError(f"{url}: refused: {said or 'the token is missing or wrong'}")
    return MoeprofError(f"{url}: {error}") if isinstance(error, AnswerError) else None


def _from(rows: TokenRows, first: int) -> TokenRows:
    """`rows` from row `first` on."""
    return TokenRows(
        step=rows.step[first:],
        request=rows.request[first:],
        position=rows.position[first:],
        phase=None if rows.phase is None else rows.phase[first:],
        experts=rows.experts[first:],
        recorded=None if rows.recorded is None else rows.recorded[first:],
    )


def _rank_status(rank: RankAnswer) -> RankStatus:
    return RankStatus(
        name=str(rank.place),
        writes=rank.writes,
        recording=rank.recording,
        tokens=rank.tokens,
        dropped=sum(rank.dropped.values()),
        pending_bytes=rank.pending_bytes,
        error=rank.error,
    )
