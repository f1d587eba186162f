"""The tokens of one phase by request and position: what follows what within a request."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace import Phase, Trace


class Runs(NamedTuple):
    """Tokens by request and position. Run i is rows[starts[i]:starts[i + 1]]: no gap."""

    rows: NDArray[np.int64]  # [tokens] row of the trace
    starts: NDArray[np.int64]  # [runs + 1] places in `rows`
    request: NDArray[np.int64]  # [tokens] number of the request, from 0 in order of its index

    @property
    def requests(self) -> int:
        """How many requests have such tokens."""
        return int(self.request[-1]) + 1

    @property
    def bounds(self) -> NDArray[np.int64]:
        """[requests + 1] the tokens of request r stand at bounds[r] to bounds[r + 1]."""
        first = np.flatnonzero(np.diff(self.request, prepend=-1))
        return np.concatenate([first, [len(self.rows)]])


def sum_between(
    values: NDArray[np.integer[Any]] | NDArray[np.bool_], bounds: NDArray[np.int64]
) -> NDArray[np.int64]:
    """[parts] sum of `values` from each of `bounds` [parts + 1] to the next."""
    total = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=total[1:])
    return np.diff(total[bounds])


def find_runs(
    trace: Trace, phase: Phase = Phase.DECODE, *, left_out: NDArray[np.bool_] | None = None
) -> Runs:
    """The runs of the decode tokens of `trace`, or of its prompts with Phase.PREFILL.

    Decode tokens are all that are not known to be of a prompt. A token that follows another in
    its request stands after it unless positions are missing between them, where a run ends. Of a
    request without any position the tokens follow each other as they were recorded. Tokens that
    are `left_out` [tokens] are as if they had not been recorded.
    Raises InputError where the trace keeps no tokens, or none of this phase.
    """
    if trace.counts_only:
        raise InputError(f"{trace}: holds counts only, no token follows another in it")
    prefill = trace.phase == Phase.PREFILL
    wanted = prefill if phase == Phase.PREFILL else ~prefill
    rows = np.flatnonzero(wanted if left_out is None else wanted & ~left_out)
    if not len(rows):
        name = "prefill" if phase == Phase.PREFILL else "decode"
        raise InputError(f"{trace}: holds no {name} tokens, whose locality this is")
    request, position = trace.request[rows], _places(trace)[rows]
    order = np.lexsort((position, request))  # stable: a position that comes twice keeps its order
    return runs_of(rows[order], request[order], position[order])


def _places(trace: Trace) -> NDArray[np.int32]:
    """[tokens] positions; where a request has none, the order of its rows, which is the engine's.

    Not where tokens were dropped, nor of tokens whose request is not known: there may be others
    between two of them.
    """
    if trace.dropped or (trace.position >= 0).all():
        return trace.position
    stated = np.unique(trace.request[trace.position >= 0])
    rows = np.flatnonzero((trace.request >= 0) & ~np.isin(trace.request, stated))
    order = rows[np.argsort(trace.request[rows], kind="stable")]
    first = np.flatnonzero(np.diff(trace.request[order], prepend=-1))
    lengths = np.diff([*first, len(order)])
    places = trace.position.copy()
    places[order] = np.arange(len(order)) - np.repeat(first, lengths)
    return places


def runs_of(
    rows: NDArray[np.int64], request: NDArray[np.int32], position: NDArray[np.int32]
) -> Runs:
    """The runs of `rows` in order of `request` and `position`, which are those of each row."""
    other = np.diff(request) != 0
    gap = other | (np.diff(position) != 1)
    starts = np.concatenate([[0], np.flatnonzero(gap) + 1, [len(rows)]])
    return Runs(rows, starts, np.concatenate([[0], np.cumsum(other)]))


def request_uses(
    ids: NDArray[np.unsignedinteger[Any]], there: NDArray[np.bool_], runs: Runs, experts: int
) -> NDArray[np.int64]:
    """[requests, experts] assignments of each request; `ids` and `there` in order of `runs`."""
    from moeprof.analysis.kernels import add_assignments  # Numba costs a second to import

    uses = np.zeros((runs.requests, experts), np.int64)
    rows = slice(None) if there.all() else there
    add_assignments(ids[rows], runs.request[rows].astype(np.int32), uses)
    return uses
