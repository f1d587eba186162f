"""Spans of consecutive tokens in runs, of widths that double, and the experts they use."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.expert_sets import Sets, sizes_of, unions_of
from moeprof.analysis.runs import Runs, sum_between


class Span(NamedTuple):
    """Windows of one width, end to end from each run's start; a shorter rest does not count."""

    width: int  # tokens
    halves: NDArray[np.int64]  # [windows] its first half among the windows of half the width
    bounds: NDArray[np.int64]  # [requests + 1] windows of request r are bounds[r] to bounds[r + 1]


def doubling_spans(runs: Runs, most: int) -> list[Span]:
    """The windows of 1, 2, 4, ... up to `most` tokens, as far as a run is that long."""
    lengths = np.diff(runs.starts)
    owner = runs.request[runs.starts[:-1]]
    spans = [Span(1, np.arange(len(runs.rows)), runs.bounds)]
    width, before = 2, lengths
    while width <= most and (lengths >= width).any():
        count = lengths // width
        first = np.cumsum(before) - before  # of each run among the windows of half the width
        inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        windows = np.bincount(owner, count, runs.requests).astype(np.int64)
        bounds = np.concatenate([[0], np.cumsum(windows)])
        spans.append(Span(width, np.repeat(first, count) + 2 * inside, bounds))
        width, before = 2 * width, count
    return spans


def distinct_of(sets: Sets, there: NDArray[np.bool_], spans: list[Span]) -> NDArray[np.int64]:
    """[spans, 2, requests] distinct experts of the windows of each request, summed; windows.

    A window with a token that is not `there` does not count.
    """
    sums = np.zeros((len(spans), 2, len(spans[0].bounds) - 1), np.int64)
    whole = None if there.all() else there
    for index, span in enumerate(spans):
        if index:
            sets = unions_of(sets, span.halves)
            whole = None if whole is None else whole[span.halves] & whole[span.halves + 1]
        sizes = sizes_of(sets)
        sums[index, 0] = sum_between(sizes if whole is None else sizes * whole, span.bounds)
        sums[index, 1] = np.diff(span.bounds) if whole is None else sum_between(whole, span.bounds)
    return sums
