"""What pruning is judged by: assignments, and gate weight, by half of the requests and domain."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import count_layer
from moeprof.analysis.uncertainty import deal_halves
from moeprof.errors import InputError
from moeprof.threads import map_threads
from moeprof.trace import Trace

ALL = "all"  # the one domain of a trace without labels
UNLABELLED = "unlabelled"


class Halves(NamedTuple):
    """Which tokens are fitted on, and which judged on, by domain."""

    domains: list[str]
    group: NDArray[np.int32]  # [tokens] half x domains + domain; half 0 is fitted on
    judged_on: str  # in words
    requests: int


class DomainSums(NamedTuple):
    """Of each half (fitted on, judged on), domain, layer and expert: [2, domains, layers, experts].

    `weight` are sums of gate weights, None where these were not recorded.
    """

    counts: NDArray[np.int64]
    weight: NDArray[np.float64] | None


def split_in_halves(trace: Trace, seed: int) -> Halves:
    """Requests of each domain dealt to the halves at random; one request is cut in the middle.

    Raises InputError on a recording of counts, or of no tokens.
    """
    if trace.counts_only:
        raise InputError(f"{trace}: holds counts only, pruning is judged on requests held out")
    if not trace.tokens:
        raise InputError(f"{trace}: holds no tokens")
    domains, domain = _domains(trace)
    requests, place = np.unique(trace.request, return_inverse=True)
    if len(requests) < 2:
        half = (np.arange(trace.tokens) >= trace.tokens // 2).astype(np.int32)
        return Halves(domains, half * len(domains) + domain, "the later half of its tokens", 1)
    of_request = np.zeros(len(requests), np.int64)
    of_request[place] = domain
    dealt = deal_halves(len(requests), np.random.default_rng(seed), of_request)
    group = dealt[place] * len(domains) + domain
    return Halves(domains, group.astype(np.int32), "requests held out", len(requests))


def _domains(trace: Trace) -> tuple[list[str], NDArray[np.int32]]:
    """The labels, and each token's place among them; what has none is a domain of its own."""
    code = trace.label_code
    if not trace.labels:
        return [ALL], np.zeros(trace.tokens, np.int32)
    names = [*trace.labels, UNLABELLED]
    present, domain = np.unique(np.where(code < 0, len(names) - 1, code), return_inverse=True)
    return [names[int(place)] for place in present], domain.astype(np.int32)


def sum_domains(trace: Trace, halves: Halves) -> DomainSums:
    """The sums of every layer, a layer a thread. TraceError where an id names no expert."""
    groups = 2 * len(halves.domains)
    shape = (2, len(halves.domains), len(trace.layers), trace.experts_per_layer)
    counts = map_threads(lambda n: count_layer(trace, n, halves.group, groups), trace.layers)
    total = np.stack(counts, axis=1).reshape(shape)
    if not trace.manifest.weights:
        return DomainSums(total, None)
    weight = map_threads(lambda n: _weigh(trace, n, halves.group, groups), trace.layers)
    return DomainSums(total, np.stack(weight, axis=1).reshape(shape))


def _weigh(trace: Trace, layer: int, group: NDArray[np.int32], groups: int) -> NDArray[np.float64]:
    """[groups, experts] gate weight of one layer."""
    size = trace.experts_per_layer
    rows = group[trace.recorded(layer)].astype(np.int64)
    cell = rows[:, None] * size + trace.experts(layer)
    weights = np.nan_to_num(trace.weights(layer).astype(np.float64))
    found = np.bincount(cell.ravel(), weights.ravel(), minlength=groups * size)
    return found.reshape(groups, size).astype(np.float64)
