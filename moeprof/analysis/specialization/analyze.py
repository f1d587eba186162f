"""Do domains use different experts? Divergence between them, beside what chance would give.

specialization = mean over layers of the generalized Jensen-Shannon divergence in bits between
the labels' expert distributions, labels weighted equally: see `divergence.py`. excess =
specialization - null mean: noise alone makes a divergence larger than 0. That takes off too much
rather than too little: a shuffled domain is a mix of all, whose requests differ more than its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeprof.analysis.specialization.domains import LayerDomains, walk_domains
from moeprof.analysis.specialization.grouping import labelled_requests
from moeprof.analysis.specialization.specialists import Specialist, find_specialists
from moeprof.analysis.uncertainty import (
    RESAMPLES,
    Interval,
    benjamini_hochberg,
    interval_of,
    permutation_p,
)
from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.trace import Trace

SHUFFLES = 200


@dataclass(frozen=True)
class LayerSpecialization(Result):
    """How far apart the domains are in one layer, in bits."""

    layer: int  # native index
    specialization: float
    null: float  # mean over shuffles
    null_p95: float
    excess: float  # specialization - null
    interval: Interval  # of the divergence, without the bias that noise adds to its estimate
    p_value: float
    q_value: float  # over the layers


@dataclass(frozen=True)
class SpecializationResult(Result):
    """Divergence between labels, in bits, and its null distribution."""

    domains: list[str]
    requests: int
    specialization: float
    null: float  # mean over shuffles
    null_p95: float
    p_value: float  # share of shuffles that diverge at least as much
    excess: float  # specialization - null
    interval: Interval  # of the divergence, without the bias that noise adds to its estimate
    per_layer: list[float]  # specialization of each layer
    layers: list[LayerSpecialization]
    distances: list[list[float]]  # [domains, domains] excess divergence of two, mean over layers
    specialists: list[Specialist]  # the first 20, those that matter most to the divergence first
    specialists_found: int
    tests: int  # (expert, domain, layer) places that were tested
    shuffles: int
    seed: int


def analyze_specialization(
    trace: Trace, *, shuffles: int = SHUFFLES, resamples: int = RESAMPLES, seed: int = 0
) -> SpecializationResult:
    """Divergence between the labels of `trace`, beside `shuffles` label permutations.

    Raises InputError where fewer than two labels were recorded, or on no shuffles; TraceError on a
    damaged trace.
    """
    if shuffles < 1:
        raise InputError(f"shuffles = {shuffles}: at least 1 is needed")
    domains = labelled_requests(trace)
    walked = walk_domains(
        trace, domains, left_out=None, shuffles=shuffles, resamples=resamples, seed=seed
    )
    observed = np.array([layer.observed for layer in walked])
    null = np.mean([layer.null for layer in walked], axis=0)
    resampled = np.mean([layer.resampled for layer in walked], axis=0)
    specialization, chance = float(observed.mean()), float(null.mean())
    found, count, tests = find_specialists(
        [layer.use for layer in walked],
        [layer.t_null for layer in walked],
        trace.layers,
        domains.names,
        trace.top_k,
    )
    return SpecializationResult(
        domains=domains.names,
        requests=len(domains.request),
        specialization=specialization,
        null=chance,
        null_p95=float(np.quantile(null, 0.95)),
        p_value=permutation_p(specialization, null),
        excess=specialization - chance,
        interval=interval_of(resampled, specialization, kind="basic"),
        per_layer=observed.tolist(),
        layers=_by_layer(trace.layers, walked),
        distances=_distances(walked),
        specialists=found,
        specialists_found=count,
        tests=tests,
        shuffles=shuffles,
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
