"""Requests by domain: who is in which, and the experts' counts under many assignments at once."""

from __future__ import annotations

from collections import Counter
from math import exp, lgamma
from shlex import quote
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace import Trace


class Domains(NamedTuple):
    """The labelled requests of a trace."""

    names: list[str]
    request: NDArray[np.int64]  # [requests] index of each, ascending
    domain: NDArray[np.intp]  # [requests] place of its label in `names`

    def sizes(self) -> dict[str, int]:
        """Requests of each domain."""
        return dict(zip(self.names, np.bincount(self.domain).tolist(), strict=True))

    def smallest_p(self) -> float:
        """One over the ways to deal the requests to groups of these sizes, whatever their names."""
        sizes = np.bincount(self.domain).tolist()
        alike = Counter(sizes).values()
        names = sum(lgamma(n + 1) for n in [*sizes, *alike])
        return exp(names - lgamma(len(self.domain) + 1))


def labelled_requests(trace: Trace) -> Domains:
    """The requests of `trace` that have a label.

    Raises InputError where they have fewer than two labels, or no layer was recorded.
    """
    if trace.counts_only:
        raise InputError(f"{trace}: holds counts only, not which request each token is of")
    labelled = [request for request in trace.requests if request.label is not None]
    names = sorted({str(request.label) for request in labelled})
    if len(names) < 2:
        raise InputError(
            f"{trace}: needs requests of at least two labels, has {len(names)}; "
            f"moeprof analyze specialization {quote(str(trace))} --no-domains answers what needs "
            "none"
        )
    if not trace.layers:
        raise InputError(f"{trace}: no MoE layer was recorded")
    place = {name: number for number, name in enumerate(names)}
    domain = np.array([place[str(request.label)] for request in labelled])
    return Domains(names, np.array([request.index for request in labelled]), domain)


def request_groups(
    trace: Trace, request: NDArray[np.int64], left_out: NDArray[np.bool_] | None = None
) -> NDArray[np.int32]:
    """[tokens] place of each token's request in `request`, ascending; else len(request).

    Tokens that are `left_out` [tokens] count as of no request.
    """
    place = np.searchsorted(request, trace.request).clip(max=len(request) - 1)
    known = request[place] == trace.request
    if left_out is not None:
        known &= ~left_out
    return np.where(known, place, len(request)).astype(np.int32)


class Assignments:
    """Many ways to assign requests to domains at once, as one sparse matrix.

    `domain` [draws or 1, requests] says where each request belongs, `weights` [draws, requests]
    how often it counts, once if None. Sparse, because the dense product runs on threads of its
    own, which wait for each other where layers have threads already.
    """

    def __init__(
        self, domain: NDArray[np.intp], domains: int, weights: NDArray[np.int64] | None = None
    ) -> None:
        from scipy.sparse import csr_array

        self._shape = (*(domain if weights is None else weights).shape, domains)
        draws, requests, _ = self._shape
        row = np.broadcast_to(np.arange(draws)[:, None] * domains + domain, (draws, requests))
        column = np.broadcast_to(np.arange(requests), row.shape)
        times = np.ones(row.shape) if weights is None else weights.astype(np.float64)
        there = times > 0
        places = (row[there], column[there])
        self._matrix = csr_array((times[there], places), shape=(draws * domains, requests))

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """[draws, domains, ...] `values` [requests, ...] summed by domain."""
        draws, _, domains = self._shape
        return np.asarray(self._matrix @ values).reshape(draws, domains, *values.shape[1:])
