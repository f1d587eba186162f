"""Whole steps out of the middle of a recording that is longer than a page can wait for."""

from __future__ import annotations

import numpy as np

from moeprof.trace import Phase, Trace


def middle_steps(trace: Trace, phase: Phase | None, most_tokens: int) -> Trace:
    """Consecutive steps around the middle of `trace` with about `most_tokens` tokens of `phase`.

    The middle, as engines run fewer requests at a time while a recording begins and ends. The trace
    itself where it has no more, and where one step has more.
    """
    counted = np.ones(trace.tokens, bool) if phase is None else trace.phase == phase
    before = np.concatenate([[0], np.cumsum(counted)])  # tokens of the phase before each row
    spare = int(before[-1]) - most_tokens
    if spare <= 0:
        return trace
    starts = np.flatnonzero(np.diff(trace.step, prepend=-1, append=-1))  # and one past the end
    wanted = (spare // 2, spare // 2 + most_tokens)
    first, stop = starts[np.searchsorted(before[starts], wanted)].tolist()
    return trace.excerpt(first, stop) if first < stop else trace
