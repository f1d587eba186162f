"""The clock: steps of all groups in lock step, from the first arrival to the last token."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moeprof.projection.serving.arrivals import Arrivals
from moeprof.projection.serving.group import Group, Plan
from moeprof.projection.serving.sequence import Sequence


@dataclass
class Timeline:
    """What happened: finished sequences, and sums over time of what waited and was held."""

    groups: SequenceOf[Group]
    sequences: list[Sequence] = field(default_factory=list)
    steps: int = 0
    busy_s: float = 0.0
    end_s: float = 0.0
    queue_s: float = 0.0  # waiting requests x seconds
    running_s: float = 0.0  # requests in the engine x seconds
    kv_token_s: float = 0.0
    queue_most: int = 0
    kv_most: float = 0.0  # tokens of the fullest group

    def gaps(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(seconds between two tokens, of how many sequences), each [sample]."""
        parts = [group.gaps.samples() for group in self.groups]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def serve(
    groups: SequenceOf[Group], arrivals: Arrivals, longest_run: int | None = None
) -> Timeline:
    """Serve all of `arrivals`, request i in group i modulo their number.

    A step lasts as long as that of the slowest group: the MoE layers of a data-parallel
    deployment wait for all. Steps in which nothing changes but the length of contexts are taken
    together, `longest_run` of them at most, up to the step in which a request arrives, enters,
    leaves or ends.
    """
    told, clock, number = Timeline(groups), 0.0, 0
    while True:
        for request in arrivals.due(clock):
            group = groups[number % len(groups)]
            group.waiting.append(Sequence(request, number, request.arrival_s, group.advance))
            number += 1
        if all(group.idle for group in groups):
            if arrivals.next_s == float("inf"):
                return told
            clock = arrivals.next_s
            continue
        clock, finished = _advance(groups, clock, arrivals.next_s, longest_run, told)
        arrivals.replace_finished(len(finished), clock)
        told.sequences += finished


def _advance(
    groups: SequenceOf[Group],
    clock: float,
    next_s: float,
    longest_run: int | None,
    told: Timeline,
) -> tuple[float, list[Sequence]]:
    """One run of alike steps: the clock after it, and what finished."""
    plans = [group.plan() for group in groups]
    steps = min(plan.steps for plan in plans if plan.decode or plan.chunks)
    steps = steps if longest_run is None else min(steps, longest_run)
    pairs = list(zip(groups, plans, strict=True))
    seconds = [group.seconds(plan, steps) for group, plan in pairs]
    ends = clock + (seconds[0] if len(seconds) == 1 else np.max(seconds, axis=0)).cumsum()
    if next_s < ends[-1]:
        ends = ends[: int(np.searchsorted(ends, next_s)) + 1]
    _tell(told, pairs, len(ends), float(ends[-1]) - clock)
    finished = [sequence for group, plan in pairs for sequence in group.commit(plan, ends)]
    told.end_s = float(ends[-1])
    return told.end_s, finished


def _tell(
    told: Timeline, pairs: SequenceOf[tuple[Group, Plan]], steps: int, seconds: float
) -> None:
    told.steps += steps
    told.busy_s += seconds
    waiting = sum(len(group.waiting) for group, _ in pairs)
    told.queue_most = max(told.queue_most, waiting)
    told.queue_s += waiting * seconds
    for group, plan in pairs:
        held = group.kv_tokens()
        grown = plan.decode * group.advance * steps + sum(tokens for _, tokens in plan.chunks)
        told.running_s += (len(group.decoding) + len(group.prefilling)) * seconds
        told.kv_token_s += (held + grown / 2) * seconds
        told.kv_most = max(told.kv_most, held + grown)
