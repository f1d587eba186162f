"""The window a placement is fitted on, and the other one that it is judged on.

`time` cuts at a step: the map is judged on what came later. `request` draws requests at random,
label by label, so both windows hold the same mix and no request is in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import count_assignments
from moeprof.errors import InputError
from moeprof.trace import Trace


class SplitBy(StrEnum):
    """What the two windows of a recording are divided by."""

    TIME = "time"
    REQUEST = "request"


@dataclass(frozen=True)
class Windows:
    """Two disjoint parts of a recording. A recording of counts has no rows to point at."""

    fit_load: NDArray[np.int64]  # [layers, experts] assignments
    test_load: NDArray[np.int64]
    fit: NDArray[np.bool_] | None  # [tokens] which rows are in it
    test: NDArray[np.bool_] | None


def split_windows(
    trace: Trace, *, by: SplitBy | str = SplitBy.TIME, fit: float = 0.5, seed: int = 0
) -> Windows:
    """The loads and rows of both windows; the first holds about `fit` of the tokens or requests.

    Raises InputError where there is nothing to divide, TraceError on a damaged recording.
    """
    by = _parse(by)
    if not 0 < fit < 1:
        raise InputError(f"fit = {fit}: a share between 0 and 1 is needed")
    if trace.counts_only:
        return _count_windows(trace, by, fit)
    if not trace.tokens:
        raise InputError(f"{trace}: holds no tokens")
    first = _by_time(trace, fit) if by is SplitBy.TIME else _by_request(trace, fit, seed)
    loads = count_assignments(trace, (~first).astype(np.int32), 2)
    return Windows(loads[0], loads[1], first, ~first)


def _parse(by: SplitBy | str) -> SplitBy:
    try:
        return SplitBy(by)
    except ValueError:
        raise InputError(f"split '{by}' is not one of {', '.join(SplitBy)}") from None


def _by_time(trace: Trace, fit: float) -> NDArray[np.bool_]:
    """[tokens] True before the step that starts nearest to `fit` of the tokens."""
    starts = np.flatnonzero(np.diff(trace.step)) + 1
    if not len(starts):
        raise InputError(f"{trace}: is one step, which time does not divide: split by request")
    cut = starts[np.abs(starts - fit * trace.tokens).argmin()]
    earlier: NDArray[np.bool_] = np.arange(trace.tokens) < cut
    return earlier


def _by_request(trace: Trace, fit: float, seed: int) -> NDArray[np.bool_]:
    """[tokens] True for about `fit` of the requests of every label, drawn with `seed`."""
    requests, first_row = np.unique(trace.request, return_index=True)
    if len(requests) < 2:
        raise InputError(f"{trace}: is one request, which cannot be divided: split by time")
    shuffled = np.random.default_rng(seed).permutation(len(requests))
    order = shuffled[np.argsort(trace.label_code[first_row][shuffled], kind="stable")]
    place = np.arange(len(requests))
    taken = np.floor((place + 1) * fit) > np.floor(place * fit)
    if taken.all() or not taken.any():
        taken[0] = not taken[0]
    chosen: NDArray[np.bool_] = np.isin(trace.request, requests[order[taken]])
    return chosen


def _count_windows(trace: Trace, by: SplitBy, fit: float) -> Windows:
    if by is SplitBy.REQUEST or len(trace.counts) < 2:
        raise InputError(
            f"{trace}: holds {len(trace.counts)} windows of counts and no requests; two windows at "
            "least can be split by time"
        )
    size = trace.counts.sum(axis=(1, 2)).cumsum()
    cut = 1 + int(np.abs(size[:-1] - fit * size[-1]).argmin())
    return Windows(trace.counts[:cut].sum(axis=0), trace.counts[cut:].sum(axis=0), None, None)
