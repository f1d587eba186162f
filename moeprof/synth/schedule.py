"""When which token of which request runs: everything of a trace but the experts."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace import Phase, Request, Trace

_GOLDEN = (5**0.5 - 1) / 2


class Spans(NamedTuple):
    """Tokens by request and position, in spans of one request, profile and phase."""

    rows: NDArray[np.int64]  # [tokens] in that order
    starts: NDArray[np.int64]  # [spans + 1] span i is rows[starts[i]:starts[i + 1]]
    fresh: NDArray[np.bool_]  # [spans] whether a request begins
    profile: NDArray[np.int64]  # [spans]
    kind: NDArray[np.int64]  # [spans] 0 for prefill, 1 for the rest

    def sample(self, tokens: int) -> Spans:
        """Whole requests, evenly chosen, of about `tokens` tokens in all, and one at least."""
        number = np.cumsum(self.fresh) - 1
        wanted = max(1, round((number[-1] + 1) * min(1.0, tokens / len(self.rows))))
        chosen = np.isin(number, np.linspace(0, number[-1], wanted).astype(int))
        length = np.diff(self.starts)
        starts = np.concatenate([[0], np.cumsum(length[chosen])])
        rows = self.rows[np.repeat(chosen, length)]
        return Spans(rows, starts, self.fresh[chosen], self.profile[chosen], self.kind[chosen])


@dataclass(frozen=True)
class Schedule:
    """Tokens in engine order, and the routing profile that each follows."""

    step: NDArray[np.int64]
    request: NDArray[np.int32]
    position: NDArray[np.int32]
    phase: NDArray[np.int8]
    profile: NDArray[np.int32]
    requests: list[Request]

    def __len__(self) -> int:
        return len(self.step)

    def first(self, tokens: int) -> Schedule:
        """The first `tokens` tokens, and the requests that have any of them."""
        present = set(np.unique(self.request[:tokens]).tolist())
        return Schedule(
            self.step[:tokens],
            self.request[:tokens],
            self.position[:tokens],
            self.phase[:tokens],
            self.profile[:tokens],
            [request for request in self.requests if request.index in present],
        )

    def spans(self) -> Spans:
        """The same tokens request by request."""
        rows = np.lexsort((self.position, self.request)).astype(np.int64)
        other = np.diff(self.request[rows]) != 0
        kind = (self.phase[rows] != Phase.PREFILL).astype(np.int64)
        changes = other | (np.diff(self.profile[rows]) != 0) | (np.diff(kind) != 0)
        starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
        return Spans(
            rows,
            np.append(starts, len(rows)),
            np.concatenate([[True], other])[starts],
            self.profile[rows[starts]].astype(np.int64),
            kind[starts],
        )


def recorded_schedule(trace: Trace, rows: NDArray[np.int64] | None = None) -> Schedule:
    """The schedule of `trace`, or of some of its rows; a profile for each phase of each request."""
    chosen = np.arange(trace.tokens) if rows is None else rows
    phase = trace.phase[chosen]
    names, request = np.unique(trace.request[chosen], return_inverse=True)
    code = request.astype(np.int64) * 3 + phase + 1
    profile = np.unique(code, return_inverse=True)[1]
    described = {known.index: known for known in trace.requests}
    outputs = np.bincount(request[phase != Phase.PREFILL], minlength=len(names)) + 1
    requests = []
    for index, name in enumerate(names.tolist()):
        known = described.get(name, Request(name))
        output = int(outputs[index])  # the last token of an answer is never routed
        requests.append(Request(index, known.label, None, known.prompt_tokens, output))
    return Schedule(
        np.unique(trace.step[chosen], return_inverse=True)[1].astype(np.int64),
        request.astype(np.int32),
        trace.position[chosen],
        phase,
        profile.astype(np.int32),
        requests,
    )


def repeated_schedule(schedule: Schedule, tokens: int) -> Schedule:
    """`tokens` tokens of `schedule`, over and over, each time as new requests.

    What is less than all of it is a choice of its batches from everywhere, since those that come
    first may be of one kind.
    """
    copies, rest = divmod(tokens, len(schedule))
    rows = [np.arange(len(schedule))] * copies + [_some_rows(schedule, rest)]
    row = np.concatenate(rows)
    copy = np.repeat(np.arange(copies + 1), [len(part) for part in rows])
    count, steps = len(schedule.requests), int(schedule.step[-1]) + 1
    request = schedule.request[row] + count * copy
    present, renumbered = np.unique(request, return_inverse=True)
    requests = [
        replace(schedule.requests[known % count], index=index)
        for index, known in enumerate(present.tolist())
    ]
    return Schedule(
        np.unique(schedule.step[row] + steps * copy, return_inverse=True)[1].astype(np.int64),
        renumbered.astype(np.int32),
        schedule.position[row],
        schedule.phase[row],
        schedule.profile[row],
        requests,
    )


def _some_rows(schedule: Schedule, tokens: int) -> NDArray[np.int64]:
    """The first `tokens` rows of as few batches as hold them, chosen evenly from all.

    A batch is what runs between two moments at which no request is under way: requests that ran
    together stay together. Where there is no such moment, all is one batch.
    """
    last = np.zeros(len(schedule.requests), np.int64)
    last[schedule.request] = np.arange(len(schedule))  # the later of two stays
    under_way = np.maximum.accumulate(last[schedule.request])
    ends = (under_way == np.arange(len(schedule)))[:-1] & (np.diff(schedule.step) > 0)
    batch = np.concatenate([[0], np.cumsum(ends)])
    length = np.bincount(batch)
    order = np.argsort(np.arange(len(length)) * _GOLDEN % 1.0)  # the first few lie far apart
    enough = int(np.searchsorted(np.cumsum(length[order]), tokens)) + 1
    return np.flatnonzero(np.isin(batch, order[:enough]))[:tokens]


@dataclass(frozen=True)
class Traffic:
    """Requests of log-normal lengths around their means, so many at a time, closed loop."""

    prompt_tokens: float = 512
    output_tokens: float = 256
    length_spread: float = 0.5  # sigma of the logarithm
    concurrency: int = 1

    def __post_init__(self) -> None:
        if not (
            1 <= self.prompt_tokens < 1e9
            and 1 <= self.output_tokens < 1e9
            and 0 <= self.length_spread <= 4
            and self.concurrency >= 1
        ):
            raise InputError(
                "traffic takes prompt_tokens, output_tokens and concurrency >= 1, and "
                f"length_spread from 0 to 4, not {self}"
            )


def served_schedule(
    traffic: Traffic, tokens: int, labels: list[str], profiles: int, rng: np.random.Generator
) -> Schedule:
    """`tokens` tokens of `traffic`: a prompt is one step, then a token a step for each request.

    Each request has one of `labels`, and one of the `profiles` that each label has.
    """
    prompts, outputs = _lengths(traffic, tokens, rng)
    begin = _begin_steps(outputs, traffic.concurrency)
    length = prompts + outputs - 1
    request = np.repeat(np.arange(len(length)), length)
    position = np.arange(len(request)) - np.repeat(np.cumsum(length) - length, length)
    decode = np.maximum(position - prompts[request] + 1, 0)
    step = begin[request] + decode
    order = np.lexsort((position, request, step))[:tokens]
    label = rng.integers(len(labels), size=len(length))
    profile = label * profiles + rng.integers(profiles, size=len(length))
    present = np.unique(request[order]).tolist()
    return Schedule(
        np.unique(step[order], return_inverse=True)[1].astype(np.int64),
        request[order].astype(np.int32),
        position[order].astype(np.int32),
        np.where(decode[order] > 0, Phase.DECODE, Phase.PREFILL).astype(np.int8),
        profile[request[order]].astype(np.int32),
        [
            Request(index, labels[label[index]], None, int(prompts[index]), int(outputs[index]))
            for index in present
        ],
    )


def _lengths(
    traffic: Traffic, tokens: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Prompt and output lengths of as many requests as `tokens` tokens take."""
    spread = traffic.length_spread
    drawn: list[NDArray[np.int64]] = []
    total = 0
    while total < tokens:
        means = np.log([traffic.prompt_tokens, traffic.output_tokens]) - spread**2 / 2
        some = np.maximum(1, np.rint(rng.lognormal(means, spread, (1024, 2)))).astype(np.int64)
        drawn.append(some)
        total += int(some.sum()) - len(some)
    lengths = np.concatenate(drawn)
    enough = int(np.searchsorted(np.cumsum(lengths.sum(axis=1) - 1), tokens)) + 1
    return lengths[:enough, 0], lengths[:enough, 1]


def _begin_steps(outputs: NDArray[np.int64], concurrency: int) -> NDArray[np.int64]:
    """The step of each request's prompt: the next one begins when one of those running ends."""
    running: list[int] = []
    begin = np.zeros(len(outputs), np.int64)
    for index, steps in enumerate(outputs.tolist()):
        if len(running) == concurrency:
            begin[index] = heapq.heappop(running)
        heapq.heappush(running, int(begin[index]) + steps)
    return begin
