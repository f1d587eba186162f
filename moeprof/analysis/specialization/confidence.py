"""How sure the router is: margins between the last chosen and the first not, and gate entropy.

Only where they were recorded. margin = selection score of the last chosen expert less that of the
first not chosen; a near tie is one below 1 % of a probability, which other kernels, batches or
formats may turn around. gate_entropy = -sum w log2 w of a token's gate weights scaled to a sum of
1, in bits: 0 where one expert carries all, log2 k where all weigh the same. Of the weights of
chosen experts alone, so not the entropy of all logits, which no trace keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.evenness import entropy_bits
from moeprof.analysis.uncertainty import Interval, bootstrap
from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.threads import map_threads
from moeprof.trace import Trace

NEAR_TIE = 0.01
TOKENS = 200_000  # of whole requests; those of more are sampled
QUANTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class LayerConfidence(Result):
    """How sure one layer's router is. None: not recorded."""

    layer: int  # native index
    margin: dict[str, float] | None  # p5, p25, p50, p75, p95
    near_ties: float | None  # share of tokens
    gate_entropy: dict[str, float] | None  # bits, the same percentiles
    top_weight: float | None  # mean share of the weight that the strongest expert carries


@dataclass(frozen=True)
class ConfidenceResult(Result):
    """How sure the router is, means over layers. None: not recorded."""

    tokens: int
    near_tie: float  # a margin below this is one
    near_ties: float | None
    near_ties_interval: Interval | None
    near_ties_by_domain: dict[str, float]
    gate_entropy: float | None
    gate_entropy_interval: Interval | None
    gate_entropy_by_domain: dict[str, float]
    most_entropy: float  # log2 k
    layers: list[LayerConfidence]


class _Layer(NamedTuple):
    result: LayerConfidence
    ties: NDArray[np.float64]  # [requests, (near ties, margins known)]
    entropy: NDArray[np.float64]  # [requests, (sum of entropies, tokens)]


class _Tokens(NamedTuple):
    request: NDArray[np.int64]  # [tokens] place of its request among those counted, -1: left out
    label: list[str | None]  # of each such request


def analyze_confidence(
    trace: Trace, *, left_out: NDArray[np.bool_] | None = None, seed: int = 0
) -> ConfidenceResult:
    """How sure the router of `trace` is, without the tokens `left_out` [tokens].

    Raises InputError where neither margins nor gate weights were recorded.
    """
    if not (trace.manifest.margins or trace.manifest.weights):
        raise InputError(
            f"{trace}: neither margins nor gate weights were recorded; "
            "record with --margins or --weights"
        )
    tokens = _choose(trace, left_out, seed)
    layers = map_threads(lambda layer: _walk(trace, layer, tokens), trace.layers)
    ties = np.sum([layer.ties for layer in layers], axis=0)
    entropy = np.sum([layer.entropy for layer in layers], axis=0)
    return ConfidenceResult(
        tokens=int((tokens.request >= 0).sum()),
        near_tie=NEAR_TIE,
        near_ties=_mean(ties),
        near_ties_interval=_interval(ties, seed),
        near_ties_by_domain=_by_domain(ties, tokens.label),
        gate_entropy=_mean(entropy),
        gate_entropy_interval=_interval(entropy, seed),
        gate_entropy_by_domain=_by_domain(entropy, tokens.label),
        most_entropy=float(np.log2(trace.top_k)),
        layers=[layer.result for layer in layers],
    )


def _choose(trace: Trace, left_out: NDArray[np.bool_] | None, seed: int) -> _Tokens:
    requests, request = np.unique(trace.request, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(requests))
    sizes = np.bincount(request)[order]
    taken = order[np.cumsum(sizes) - sizes < TOKENS]
    place = np.full(len(requests), -1, np.int64)
    place[np.sort(taken)] = np.arange(len(taken))
    of = place[request]
    if left_out is not None:
        of = np.where(left_out, -1, of)
    label = {one.index: one.label for one in trace.requests}
    return _Tokens(of, [label.get(int(requests[i])) for i in np.sort(taken)])


def _walk(trace: Trace, layer: int, tokens: _Tokens) -> _Layer:
    request = tokens.request[trace.recorded(layer)]
    rows = np.flatnonzero(request >= 0)
    count = len(tokens.label)
    margins = weights = top = None
    ties, entropies = np.zeros((count, 2)), np.zeros((count, 2))
    if trace.manifest.margins:
        values = trace.margins(layer)[rows].astype(np.float64)
        known = ~np.isnan(values)
        margins = values[known]
        ties = _sums(request[rows][known], margins < NEAR_TIE, count)
    if trace.manifest.weights:
        share, known = _weight_shares(trace.weights(layer)[rows])
        weights = entropy_bits(share)
        top = float(share.max(axis=1).mean()) if len(share) else None
        entropies = _sums(request[rows][known], weights, count)
    return _Layer(
        LayerConfidence(layer, _spread(margins), _mean(ties), _spread(weights), top),
        ties,
        entropies,
    )


def _weight_shares(
    weights: NDArray[np.float16],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """[known rows, k] weights over their sum, and [rows] which have finite ones that sum to > 0."""
    values = weights.astype(np.float64)
    total = values.sum(axis=1)
    known = np.isfinite(values).all(axis=1) & (values >= 0).all(axis=1) & (total > 0)
    return values[known] / total[known, None], known


def _sums(
    request: NDArray[np.int64],
    values: NDArray[np.float64] | NDArray[np.bool_],
    requests: int,
) -> NDArray[np.float64]:
    """[requests, (sum, count)] of `values` by request."""
    total = np.bincount(request, values.astype(np.float64), requests)
    return np.stack([total, np.bincount(request, minlength=requests)], axis=1)


def _spread(values: NDArray[np.float64] | None) -> dict[str, float] | None:
    if values is None or not len(values):
        return None
    at = np.percentile(values, QUANTILES).tolist()
    return {f"p{q}": value for q, value in zip(QUANTILES, at, strict=True)}


def _mean(sums: NDArray[np.float64]) -> float | None:
    """Sum over count of `sums` [requests, (sum, count)]; None where there was none."""
    total, count = sums.sum(axis=0)
    return float(total / count) if count else None


def _interval(sums: NDArray[np.float64], seed: int) -> Interval | None:
    if not sums[:, 1].any():
        return None
    there = sums[sums[:, 1] > 0]

    def mean(weights: NDArray[np.int64]) -> float:
        total, count = weights @ there
        return float(total / count)

    return bootstrap(mean, len(there), seed=seed)


def _by_domain(sums: NDArray[np.float64], label: list[str | None]) -> dict[str, float]:
    names = sorted({name for name in label if name is not None})
    means = {name: _mean(sums[[one == name for one in label]]) for name in names}
    return {name: mean for name, mean in means.items() if mean is not None}
