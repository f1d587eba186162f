"""Do domains use different experts? Divergence between them, beside what chance would give.

specialization = mean over layers of the generalized Jensen-Shannon divergence in bits between
the labels' expert distributions, labels weighted equally (Lin 1991, doi:10.1109/18.61115):
H(mean_d p_d) - mean_d H(p_d). The null shuffles labels over requests, not tokens: tokens of one
request are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import count_layer
from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.trace import Trace

SHUFFLES = 200


@dataclass(frozen=True)
class SpecializationResult(Result):
    """Divergence between labels, in bits, and its null distribution."""

    domains: list[str]
    requests: int
    specialization: float
    null: float  # mean over shuffles
    null_p95: float
    p_value: float  # share of shuffles that diverge at least as much
    per_layer: list[float]
    shuffles: int
    seed: int


def analyze_specialization(
    trace: Trace, *, shuffles: int = SHUFFLES, seed: int = 0
) -> SpecializationResult:
    """Divergence between the labels of `trace`, beside `shuffles` label permutations.

    Raises InputError where fewer than two labels were recorded, or on no shuffles; TraceError on a
    damaged trace.
    """
    if shuffles < 1:
        raise InputError(f"shuffles = {shuffles}: at least 1 is needed")
    labelled = [request for request in trace.requests if request.label is not None]
    domains = sorted({str(request.label) for request in labelled})
    if len(domains) < 2:
        raise InputError(f"{trace}: needs requests of at least two labels, has {len(domains)}")
    if not trace.layers:
        raise InputError(f"{trace}: no MoE layer was recorded")
    place = {name: number for number, name in enumerate(domains)}
    domain = np.array([place[str(request.label)] for request in labelled])
    group = _request_groups(trace, [request.index for request in labelled])
    observed, shuffled = [], []
    for layer in trace.layers:  # the counts of all layers at once may not fit in memory
        counts = count_layer(trace, layer, group, len(labelled) + 1)[:-1, None]
        observed.append(domain_divergence(counts, domain, len(domains)))
        shuffled.append(
            shuffled_divergence(counts, domain, len(domains), shuffles=shuffles, seed=seed)
        )
    per_layer = np.concatenate(observed)
    null = np.stack(shuffled, axis=1).mean(axis=1)
    return SpecializationResult(
        domains=domains,
        requests=len(labelled),
        specialization=float(per_layer.mean()),
        null=float(null.mean()),
        null_p95=float(np.quantile(null, 0.95)),
        p_value=float((1 + (null >= per_layer.mean()).sum()) / (1 + shuffles)),
        per_layer=per_layer.tolist(),
        shuffles=shuffles,
        seed=seed,
    )


def _request_groups(trace: Trace, indices: list[int]) -> NDArray[np.int32]:
    """[tokens] place of each token's request in `indices`, len(indices) where it is not there."""
    order = np.argsort(indices)
    place = np.searchsorted(np.array(indices)[order], trace.request).clip(max=len(indices) - 1)
    row = order[place]
    known = np.array(indices)[row] == trace.request
    return np.where(known, row, len(indices)).astype(np.int32)


def shuffled_divergence(
    counts: NDArray[np.int64] | NDArray[np.float64],
    domain: NDArray[np.intp],
    domains: int,
    *,
    shuffles: int,
    seed: int,
) -> NDArray[np.float64]:
    """[shuffles] mean divergence over layers with `domain` permuted over the requests."""
    rng = np.random.default_rng(seed)
    counts = counts.astype(np.float64)  # once for all shuffles
    orders = (rng.permutation(domain) for _ in range(shuffles))
    return np.array([domain_divergence(counts, order, domains).mean() for order in orders])


def domain_divergence(
    counts: NDArray[np.int64] | NDArray[np.float64], domain: NDArray[np.intp], domains: int
) -> NDArray[np.float64]:
    """[layers] Jensen-Shannon divergence in bits between the domains' expert distributions.

    `counts` [requests, layers, experts] are assignments, `domain` [requests] is below `domains`.
    """
    members = np.eye(domains)[domain]  # a product of matrices: np.add.at takes 50 times as long
    totals = (members.T @ counts.reshape(len(counts), -1)).reshape(domains, *counts.shape[1:])
    share = totals / np.maximum(totals.sum(axis=2, keepdims=True), 1)
    result: NDArray[np.float64] = _entropy(share.mean(axis=0)) - _entropy(share).mean(axis=0)
    return result


def _entropy(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy in bits over the last axis; 0 log 0 = 0."""
    logs = np.log2(share, out=np.zeros_like(share), where=share > 0)
    entropy: NDArray[np.float64] = -(share * logs).sum(axis=-1)
    return entropy
