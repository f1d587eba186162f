"""What the requests' own loads tell: how sure the imbalance is, who stands out, when it shifted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.change_points import BLOCKS, FEWEST, ChangePoint, find_splits
from moeprof.analysis.clusters import Clusters, blocks_of, find_clusters
from moeprof.analysis.counting import count_layer
from moeprof.analysis.evenness import imbalance, on_gpus
from moeprof.analysis.outlying_experts import (
    OutlyingExperts,
    Spread,
    outlying_experts,
    request_spread,
)
from moeprof.analysis.uncertainty import Interval, draw_requests, interval_of
from moeprof.result import Result
from moeprof.threads import map_threads
from moeprof.trace import Trace


@dataclass(frozen=True)
class RequestLoad(Result):
    """What follows from loads request by request."""

    imbalance: Interval | None  # of the mean imbalance; None where one request is all there is
    outlying: OutlyingExperts | None  # None: too few requests, of one text they prove nothing
    change_points: list[ChangePoint] | None  # None: too few requests to tell


def analyze_requests(
    trace: Trace, observed: float, *, gpus: int | None = None, seed: int = 0
) -> RequestLoad:
    """Interval of the `observed` mean imbalance, outlying experts and change points of `trace`.

    One pass over the ids, a layer at a time.
    """
    clusters = find_clusters(trace)
    starts = blocks_of(clusters, BLOCKS)
    drawn = draw_requests(len(clusters.first), seed=seed).astype(np.float64)

    def walk(layer: int) -> tuple[NDArray[np.float64], Spread, NDArray[np.int64]]:
        uses = count_layer(trace, layer, clusters.of, len(clusters.first))
        ratios = imbalance(on_gpus((drawn @ uses).astype(np.int64), gpus))
        return ratios, request_spread(uses, trace.top_k), np.add.reduceat(uses, starts)

    layers = map_threads(walk, trace.layers)
    ratios, spreads, loads = (list(part) for part in zip(*layers, strict=True))
    several, enough = len(clusters.first) > 1, clusters.are_requests
    interval = interval_of(np.mean(ratios, axis=0), observed, kind="basic")
    return RequestLoad(
        imbalance=replace(interval, unit_of_resampling=clusters.unit) if several else None,
        outlying=outlying_experts(trace.layers, spreads, trace.top_k) if enough else None,
        change_points=_shifts(trace, clusters, starts, np.stack(loads, axis=1), gpus, seed),
    )


def _shifts(
    trace: Trace,
    clusters: Clusters,
    starts: NDArray[np.int64],
    load: NDArray[np.int64],
    gpus: int | None,
    seed: int,
) -> list[ChangePoint] | None:
    """The change points of `load` [blocks, layers, experts], each beside what it parts."""
    if not clusters.are_requests or len(load) < FEWEST:
        return None
    splits = find_splits(load, seed)
    edges = [0, *(block for block, _ in splits), len(load)]
    parts = [load[start:stop].sum(axis=0) for start, stop in pairwise(edges)]
    even = [float(imbalance(on_gpus(part, gpus)).mean()) for part in parts]
    tokens = np.cumsum(clusters.tokens)
    shifts = []
    for number, (block, p) in enumerate(splits):
        cluster = starts[block]
        row = clusters.first[cluster]
        shifts.append(
            ChangePoint(
                request=int(trace.request[row]),
                step=int(trace.step[row]),
                share=float(tokens[cluster - 1] / tokens[-1]),
                p_value=p,
                distance=total_variation(parts[number], parts[number + 1]),
                imbalance_before=even[number],
                imbalance_after=even[number + 1],
            )
        )
    return shifts


def total_variation(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Mean over layers of half the summed difference of shares; loads [layers, experts]."""
    shares = [load / np.maximum(load.sum(axis=1, keepdims=True), 1) for load in (one, other)]
    return float(np.abs(shares[0] - shares[1]).sum(axis=1).mean() / 2)
