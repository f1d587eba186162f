"""The steps an engine would have made of a trace's requests: continuous batching.

Rules, in vLLM's words: at most `max_num_seqs` requests run at a time; a place that falls free goes
to the next request in order of arrival (where none is recorded, of first appearance). In every step
each running request past its prompt takes one token; what is left of `max_num_batched_tokens` goes
to the prompts of running requests, in order of admission, in chunks. A request decodes from the
step after the one that finished its prompt. Tokens that one recorded step served in parallel or on
speculation come one at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError, TraceError
from moeprof.trace.reader import Trace
from moeprof.trace.rows import Phase


class Batching(NamedTuple):
    """Rows of a trace in another order: step i is rows order[starts[i]:starts[i + 1]]."""

    order: NDArray[np.int64]  # [tokens] every row of the trace once
    starts: NDArray[np.int64]  # [steps + 1]


class RequestRows(NamedTuple):
    """Requests in order of arrival: request i is rows[first[i]:first[i + 1]], prefill first."""

    rows: NDArray[np.int64]  # [tokens]
    first: NDArray[np.int64]  # [requests + 1]
    prompt: NDArray[np.int64]  # [requests] how many of its rows are prefill

    def drawn(self, requests: NDArray[np.int64]) -> RequestRows:
        """The requests with these numbers, in this order; one may come several times."""
        lengths = np.diff(self.first)[requests]
        first = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(self.first[:-1][requests] - first[:-1], lengths)
        rows = self.rows[np.arange(first[-1]) + shift]
        return RequestRows(rows, first, self.prompt[requests])

    def batched(self, max_num_seqs: int, max_num_batched_tokens: int = 8192) -> Batching:
        """Their steps, `max_num_seqs` of them running at a time.

        Raises InputError for limits below 1 or a token limit below the number of requests.
        """
        from moeprof.trace.kernels import schedule

        if max_num_seqs < 1:
            raise InputError(f"max_num_seqs {max_num_seqs}: at least 1 is needed")
        if max_num_batched_tokens < max_num_seqs:
            raise InputError(
                f"max_num_batched_tokens {max_num_batched_tokens}: at least one for each of "
                f"{max_num_seqs} requests is needed"
            )
        places, starts = schedule(self.first, self.prompt, max_num_seqs, max_num_batched_tokens)
        return Batching(self.rows[places], starts)


def rebatch(trace: Trace, max_num_seqs: int, max_num_batched_tokens: int = 8192) -> Batching:
    """The steps of `trace`'s requests, `max_num_seqs` of them running at a time.

    Raises InputError for limits below 1 or a token limit below the number of requests, TraceError
    where rows do not say their request or phase.
    """
    return request_rows(trace).batched(max_num_seqs, max_num_batched_tokens)


def request_rows(trace: Trace, keep: NDArray[np.bool_] | None = None) -> RequestRows:
    """The requests of `trace` and their rows; with `keep` [tokens], of those rows alone.

    Raises TraceError where rows do not say their request or phase.
    """
    chosen = np.arange(trace.tokens) if keep is None else np.flatnonzero(keep)
    request, phase = trace.request[chosen], trace.phase[chosen]
    if not len(chosen) or (request < 0).any() or (phase == Phase.UNKNOWN).any():
        raise TraceError(
            f"{trace}: to batch requests anew, every token must say its request and whether it is "
            "prefill or decode"
        )
    arrival = _arrivals(trace, request)
    rows = np.lexsort((np.arange(len(chosen)), phase == Phase.DECODE, arrival[request]))
    bounds = np.flatnonzero(np.diff(request[rows])) + 1
    first = np.concatenate([[0], bounds, [len(chosen)]])
    prompt = np.add.reduceat((phase[rows] != Phase.DECODE).astype(np.int64), first[:-1])
    return RequestRows(chosen[rows], first, prompt)


def _arrivals(trace: Trace, request: NDArray[np.int32]) -> NDArray[np.int64]:
    """[highest request + 1] the rank of each request by arrival, else by its first row."""
    indices, first = np.unique(request, return_index=True)
    known = {one.index: one.arrival_s for one in trace.requests if one.arrival_s is not None}
    times = np.array([known.get(index, np.inf) for index in indices.tolist()])
    rank = np.zeros(int(indices[-1]) + 1, np.int64)
    rank[indices[np.lexsort((first, times))]] = np.arange(len(indices))
    return rank
