"""One walk over the layers: how far apart the domains are, by chance too, and how sure that is.

The null shuffles labels over requests, not tokens: tokens of one request are not independent, and
every shuffle keeps each request's experts and each domain's number of requests.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import count_layer
from moeprof.analysis.specialization.divergence import (
    divergence,
    pair_divergence,
    shares,
    shuffled,
)
from moeprof.analysis.specialization.grouping import Assignments, Domains, request_groups
from moeprof.analysis.specialization.specialists import Use, expert_use
from moeprof.analysis.uncertainty import draw_requests
from moeprof.threads import map_threads
from moeprof.trace import Trace

PAIR_SHUFFLES = 20  # a mean over these is what two domains differ by chance

TEST_SHUFFLES = 40  # for each expert and domain; pooled over experts, they are many


class LayerDomains(NamedTuple):
    """One layer's divergence in bits."""

    observed: float
    null: NDArray[np.float64]  # [shuffles]
    resampled: NDArray[np.float64]  # [resamples]
    pairs: NDArray[np.float64]  # [domains, domains]
    pairs_null: NDArray[np.float64]  # [domains, domains] mean over shuffles
    use: Use
    t_null: NDArray[np.float32]  # [shuffles, domains, experts]


class _Draws(NamedTuple):
    group: NDArray[np.int32]  # [tokens] place of the request
    requests: int
    observed: Assignments
    shuffled: Assignments
    tested: Assignments  # the first of the shuffles
    resampled: Assignments


def walk_domains(
    trace: Trace,
    domains: Domains,
    *,
    left_out: NDArray[np.bool_] | None,
    shuffles: int,
    resamples: int,
    seed: int,
) -> list[LayerDomains]:
    """Each layer of `trace`, without the tokens that are `left_out` [tokens]."""
    domain, names = domains.domain, len(domains.names)
    weights = draw_requests(len(domain), resamples=resamples, seed=seed, strata=domain)
    orders = shuffled(domain, shuffles, seed)
    draws = _Draws(
        request_groups(trace, domains.request, left_out),
        len(domain),
        Assignments(domain[None], names),
        Assignments(orders, names),
        Assignments(orders[:TEST_SHUFFLES], names),
        Assignments(domain[None], names, weights),
    )
    return map_threads(lambda layer: _layer(trace, layer, draws), trace.layers)


def _layer(trace: Trace, layer: int, draws: _Draws) -> LayerDomains:
    counts = count_layer(trace, layer, draws.group, draws.requests + 1)[:-1].astype(np.float64)
    observed = shares(draws.observed.sums(counts)[0])
    null = shares(draws.shuffled.sums(counts))
    return LayerDomains(
        float(divergence(observed)),
        divergence(null),
        divergence(shares(draws.resampled.sums(counts))),
        pair_divergence(observed),
        np.mean([pair_divergence(part) for part in null[:PAIR_SHUFFLES]], axis=0),
        expert_use(counts, draws.observed),
        expert_use(counts, draws.tested).t.astype(np.float32),
    )
