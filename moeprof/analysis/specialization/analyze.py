"""Do domains use different experts? Divergence between them, beside what chance would give.

specialization = mean over layers of the generalized Jensen-Shannon divergence in bits between
the labels' expert distributions, labels weighted equally: see `divergence.py`. excess =
specialization - null mean: noise alone makes a divergence larger than 0. That takes off too much
rather than too little: a shuffled domain is a mix of all, whose requests differ more than its own.
Tokens of a prefix that requests share count once for each label: see `prefixes.py`.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from moeprof.analysis.specialization.domains import LayerDomains, walk_domains
from moeprof.analysis.specialization.factors import (
    Prefixes,
    RoutingFactors,
    analyze_routing_factors,
)
from moeprof.analysis.specialization.grouping import Domains, labelled_requests
from moeprof.analysis.specialization.prefixes import find_shared_prefixes
from moeprof.analysis.specialization.results import (
    Divergence,
    LayerSpecialization,
    SpecializationResult,
)
from moeprof.analysis.specialization.specialists import find_specialists
from moeprof.analysis.uncertainty import (
    RESAMPLES,
    benjamini_hochberg,
    interval_of,
    permutation_p,
)
from moeprof.errors import InputError
from moeprof.trace import Trace

SHUFFLES = 200


def analyze_specialization(
    trace: Trace,
    *,
    prefixes: Prefixes = "once",
    shuffles: int = SHUFFLES,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> SpecializationResult:
    """Divergence between the labels of `trace`, beside `shuffles` label permutations.

    Tokens of a beginning that requests share, as a system prompt, count once for each label, or
    with `prefixes` "all" as often as they were recorded.

    Raises InputError where fewer than two labels were recorded, or on no shuffles; TraceError on a
    damaged trace.
    """
    if shuffles < 1:
        raise InputError(f"shuffles = {shuffles}: at least 1 is needed")
    if prefixes not in ("once", "all"):
        raise InputError(f"prefixes = {prefixes!r}: 'once' or 'all' is needed")
    domains = labelled_requests(trace)
    shared = find_shared_prefixes(trace)
    walk = partial(walk_domains, trace, domains, shuffles=shuffles, seed=seed)
    left_out = {"once": shared.repeated if shared.repeated_tokens else None, "all": None}
    walked = walk(left_out=left_out[prefixes], resamples=resamples)
    by_prefixes = dict.fromkeys(left_out, _divergence(walked))
    if shared.repeated_tokens:
        other = "all" if prefixes == "once" else "once"
        by_prefixes[other] = _divergence(walk(left_out=left_out[other], resamples=1))
    factors = analyze_routing_factors(trace, prefixes=prefixes, shared=shared, seed=seed)
    return _result(trace, domains, walked, by_prefixes, factors, seed)


def _divergence(walked: list[LayerDomains]) -> Divergence:
    observed = float(np.mean([layer.observed for layer in walked]))
    null = np.mean([layer.null for layer in walked], axis=0)
    return Divergence(observed, float(null.mean()), permutation_p(observed, null))


def _result(
    trace: Trace,
    domains: Domains,
    walked: list[LayerDomains],
    by_prefixes: dict[str, Divergence],
    factors: RoutingFactors,
    seed: int,
) -> SpecializationResult:
    whole = by_prefixes[factors.prefixes]
    null = np.mean([layer.null for layer in walked], axis=0)
    resampled = np.mean([layer.resampled for layer in walked], axis=0)
    uses, t_null = [layer.use for layer in walked], [layer.t_null for layer in walked]
    found, count, tests = find_specialists(uses, t_null, trace.layers, domains.names, trace.top_k)
    return SpecializationResult(
        domains=domains.names,
        requests=len(domains.request),
        requests_by_domain=domains.sizes(),
        specialization=whole.specialization,
        null=whole.null,
        null_p95=float(np.quantile(null, 0.95)),
        p_value=whole.p_value,
        smallest_p=max(domains.smallest_p(), 1 / (1 + len(null))),
        excess=whole.specialization - whole.null,
        interval=interval_of(resampled, whole.specialization, kind="basic"),
        per_layer=[layer.observed for layer in walked],
        layers=_by_layer(trace.layers, walked),
        distances=_distances(walked),
        specialists=found,
        specialists_found=count,
        tests=tests,
        by_prefixes=by_prefixes,
        factors=factors,
        shuffles=len(null),
        seed=seed,
    )


def _by_layer(layers: tuple[int, ...], walked: list[LayerDomains]) -> list[LayerSpecialization]:
    p = [permutation_p(layer.observed, layer.null) for layer in walked]
    q = benjamini_hochberg(p)
    return [
        LayerSpecialization(
            layer=layer,
            specialization=one.observed,
            null=float(one.null.mean()),
            null_p95=float(np.quantile(one.null, 0.95)),
            excess=one.observed - float(one.null.mean()),
            interval=interval_of(one.resampled, one.observed, kind="basic"),
            p_value=p[row],
            q_value=float(q[row]),
        )
        for row, (layer, one) in enumerate(zip(layers, walked, strict=True))
    ]


def _distances(walked: list[LayerDomains]) -> list[list[float]]:
    """Mean over layers of each pair's divergence less what shuffled labels give that pair."""
    apart = np.mean([layer.pairs - layer.pairs_null for layer in walked], axis=0)
    np.fill_diagonal(apart, 0)
    matrix: list[list[float]] = apart.tolist()
    return matrix
