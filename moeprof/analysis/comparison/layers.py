"""Which layers of A are compared with which of B, and their figures under every draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.chance import even_router_distinct
from moeprof.analysis.comparison.draws import Draws
from moeprof.analysis.comparison.figures import (
    BATCHES,
    DrawnRequests,
    Totals,
    divergence,
    figures_of,
)
from moeprof.analysis.comparison.pairing import Requests
from moeprof.analysis.comparison.request_sums import LayerSums, find_decode, sum_layer
from moeprof.threads import map_threads
from moeprof.trace import Trace


class LayerDraws(NamedTuple):
    """Figures of a pair of layers by draw: the recordings, then resamples, then permutations."""

    a: dict[str, NDArray[np.float64]]  # by metric, [draws]
    b: dict[str, NDArray[np.float64]]
    divergence: NDArray[np.float64]  # [draws] bits between A's experts and B's


def match_layers(a: Trace, b: Trace) -> list[tuple[int, int]]:
    """Native layers that stand for each other: of one index, else in order where as many.

    Empty where layers are not alike: other numbers of experts, of top-k, or of layers.
    """
    if (a.experts_per_layer, a.top_k) != (b.experts_per_layer, b.top_k):
        return []
    both = sorted(set(a.layers) & set(b.layers))
    if both:
        return [(layer, layer) for layer in both]
    return list(zip(a.layers, b.layers, strict=True)) if len(a.layers) == len(b.layers) else []


class AllDraws:
    """The draws of two recordings whose layers stand for each other, ready for any layer."""

    def __init__(self, draws: Draws, codes: Sequence[NDArray[np.intp]], labels: int) -> None:
        """`codes` of A's and of B's requests, places among `labels` labels or behind them."""
        self._labels, self._paired = labels, draws.paired
        pooled = np.concatenate(codes)
        everyone = np.ones((1, len(pooled)), np.float32)
        self._a = DrawnRequests(draws.a, codes[0], labels + 1)
        self._b = DrawnRequests(draws.b, codes[1], labels + 1)
        self._all = DrawnRequests(everyone, pooled, labels + 1)
        self._all_b = DrawnRequests(everyone[:, : len(codes[1])], codes[1], labels + 1)
        dealt = codes[0] if draws.paired else pooled
        self._dealt = DrawnRequests(draws.dealt, dealt, labels + 1)

    def figures(self, a: LayerSums, b: LayerSums, top_k: int) -> LayerDraws:
        """The figures of a layer in every draw."""
        pooled = LayerSums(*(np.concatenate(pair) for pair in zip(a, b, strict=True)))
        if self._paired:  # half the work: all of B, and of some requests A's instead
            instead = LayerSums(*(one - other for one, other in zip(a, b, strict=True)))
            dealt = self._all_b.totals(b).plus(self._dealt.totals(instead))
        else:
            dealt = self._dealt.totals(pooled)
        rest = self._all.totals(pooled).without(dealt)
        totals_a = _joined(self._a.totals(a), dealt)
        totals_b = _joined(self._b.totals(b), rest)
        return LayerDraws(
            figures_of(totals_a, top_k, self._labels),
            figures_of(totals_b, top_k, self._labels),
            divergence(totals_a, totals_b),
        )


def draw_alone(
    trace: Trace,
    requests: Requests,
    weights: NDArray[np.float32],
    codes: NDArray[np.intp],
    labels: int,
) -> dict[str, NDArray[np.float64]]:
    """[draws] of figures that compare across models, means over all layers of `trace`.

    Entropy is over its largest, log2 E; repeats and distinct experts are over those of a router
    that is even and independent.
    """
    decode, k, size = find_decode(trace, requests), trace.top_k, trace.experts_per_layer

    drawn = DrawnRequests(weights, codes, labels + 1)

    def draw_one(layer: int) -> dict[str, NDArray[np.float64]]:
        sums = sum_layer(trace, layer, requests, decode)
        return figures_of(drawn.totals(sums), k, labels)

    layers = map_threads(draw_one, trace.layers)
    mean = {name: np.mean([layer[name] for layer in layers], axis=0) for name in layers[0]}
    mean["normalized_entropy"] = mean.pop("entropy") / np.log2(size)
    mean["repeat_over_even"] = mean["next_token_repeat"] * size / k
    for batch in BATCHES:
        even = even_router_distinct(size, k, batch)
        mean[f"distinct_over_even.{batch}"] = mean.pop(f"distinct_experts.{batch}") / even
    return mean


def _joined(first: Totals, second: Totals) -> Totals:
    return Totals(
        np.concatenate([first.load, second.load], axis=1),
        np.concatenate([first.missed, second.missed]),
        np.concatenate([first.decode, second.decode]),
    )
