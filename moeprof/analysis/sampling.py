"""How far a recording of some requests may lie from one of all of them.

Each request was kept with probability r, whatever became of the others (Poisson sampling), so a
request is what was sampled, with all its tokens: a cluster. Of a quantity y_i of request i:

    total    T = sum y_i / r               variance (1 - r) / r^2  sum y_i^2
    share    p = sum y_i / sum x_i         variance (1 - r) sum (y_i - p x_i)^2 / (sum x_i)^2

with sums over the requests that were kept, y_i the assignments to an expert and x_i all assignments
of its layer. The first is the Horvitz-Thompson estimator with its unbiased variance estimator, the
second its ratio, linearised by Taylor. Särndal, Swensson, Wretman: Model Assisted Survey Sampling
(Springer 1992), sections 3.5 (Poisson sampling), 5.5 and 5.6 (linearisation, ratios), 4.2
(clusters). An error is one standard error; the linearised ones are too small where fewer than some
30 requests were kept, or where a few of them hold most tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import count_layer
from moeprof.analysis.evenness import imbalance
from moeprof.errors import InputError
from moeprof.result import NOT_JSON, Result
from moeprof.trace import Trace


@dataclass(frozen=True)
class LayerSamplingError(Result):
    """Errors of one layer's load. Relative ones are of the experts that were used."""

    layer: int  # native index
    mean_share_error: float  # standard error of an expert's share over that share, mean of experts
    max_share_error: float
    imbalance: float
    imbalance_error: float  # standard error of `imbalance`; too large where no expert leads clearly


@dataclass(frozen=True)
class SamplingError(Result):
    """What sampling requests leaves uncertain. All errors are 0 where every request was kept."""

    rate: float  # probability that a request was kept
    requests: int  # kept, and with tokens in the trace
    tokens: int
    estimated_tokens: float  # of all requests, kept or not
    tokens_error: float  # its standard error over itself
    mean_share_error: float  # mean over layers and used experts
    max_share_error: float
    per_layer: list[LayerSamplingError]
    share_error: NDArray[np.float64] = field(  # [layers, experts] standard error of the share
        repr=False, metadata=NOT_JSON
    )


def sampling_error(trace: Trace) -> SamplingError:
    """How far the load of a sampled `trace` may lie from that of all requests.

    Raises InputError on an empty trace, TraceError on one of counts or a damaged one.
    """
    requests, request = np.unique(trace.request, return_inverse=True)
    if not trace.tokens:
        raise InputError(f"{trace}: holds no tokens")
    group = request.astype(np.int32)
    sampling = trace.manifest.sampling
    rate = sampling.rate if sampling else 1.0
    load = np.zeros((len(trace.layers), trace.experts_per_layer), np.int64)
    error = np.zeros(load.shape)
    for row, layer in enumerate(trace.layers):
        counts = count_layer(trace, layer, group, len(requests))  # large: one layer at a time
        load[row], error[row] = counts.sum(axis=0), _share_error(counts, rate)
    relative = _relative(load, error)
    return SamplingError(
        rate=rate,
        requests=len(requests),
        tokens=trace.tokens,
        estimated_tokens=trace.tokens / rate,
        tokens_error=_total_error(np.bincount(group), rate),
        mean_share_error=_mean(relative[load > 0]),
        max_share_error=float(relative.max()),
        per_layer=_by_layer(trace, load, error, relative),
        share_error=error,
    )


def _total_error(values: NDArray[np.int64], rate: float) -> float:
    """Relative standard error of the total of `values` [requests]."""
    y = values.astype(np.float64)
    return float(np.sqrt((1 - rate) * (y @ y)) / y.sum())


def _share_error(counts: NDArray[np.int64], rate: float) -> NDArray[np.float64]:
    """[experts] standard error of each share of one layer's `counts` [requests, experts]."""
    whole = counts.sum(axis=1)
    total = max(int(whole.sum()), 1)  # a layer without assignments has shares and errors of 0
    share = counts.sum(axis=0) / total
    residual = counts - np.outer(whole, share)
    error: NDArray[np.float64] = np.sqrt((1 - rate) * (residual**2).sum(axis=0)) / total
    return error


def _relative(load: NDArray[np.int64], error: NDArray[np.float64]) -> NDArray[np.float64]:
    """[layers, experts] standard error over the share, 0 for an expert that was not used."""
    share = load / np.maximum(load.sum(axis=1, keepdims=True), 1)
    ratio: NDArray[np.float64] = np.zeros_like(error)
    np.divide(error, share, out=ratio, where=share > 0)
    return ratio


def _by_layer(
    trace: Trace,
    load: NDArray[np.int64],
    error: NDArray[np.float64],
    relative: NDArray[np.float64],
) -> list[LayerSamplingError]:
    """Imbalance is the busiest expert's share times the experts, so its error is that share's."""
    ratio = imbalance(load)
    busiest = load.argmax(axis=1)
    return [
        LayerSamplingError(
            layer=layer,
            mean_share_error=_mean(relative[row][load[row] > 0]),
            max_share_error=float(relative[row].max()),
            imbalance=float(ratio[row]),
            imbalance_error=float(error[row, busiest[row]] * load.shape[1]),
        )
        for row, layer in enumerate(trace.layers)
    ]


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else 0.0
