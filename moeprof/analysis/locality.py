"""Locality: how soon experts are used again, and how many distinct ones a span or a batch needs.

All of it over decode tokens: those that are not known to be of a prompt, in order of position.
With S_t the experts of token t of a request, q_r(e) the share of request r's tokens that use e,
n_e the assignments to e, N = sum n_e, E experts, top-k and R requests:
next_token_repeat = mean over layers and consecutive tokens of |S_t and S_(t-1)| / k,
repeat_by_lag{d} the same for tokens d apart,
working_set{w} = mean over layers and windows of w consecutive tokens of their distinct experts,
distinct_by_batch{B} = mean over layers of sum_e 1 - mean over sets of B requests of
prod_(r in set) (1 - q_r(e)): a step with a token each, any of its own, of B requests, for B <= R,
distinct_null{B} = mean over layers of sum_e 1 - (1 - p_e)^B with p_e = n_e k / N.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import refuse_foreign_ids
from moeprof.analysis.runs import Runs, find_runs, runs_of
from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.trace import Trace

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LAGS = np.array([1, 2, 4, 8, 16, 32, 64])
WINDOWS = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256])
FARTHEST = 4096  # tokens; a longer way back to the last use counts as this


@dataclass(frozen=True)
class LocalityResult(Result):
    """Reuse of experts over time and over a batch, means over layers. None: no pair of tokens."""

    next_token_repeat: float | None
    repeat_null: float  # the same if each token chose for itself: mean of sum_e p_e^2 / k
    repeat_by_lag: dict[int, float]  # by tokens apart
    reuse_tokens: dict[str, int]  # p50, p90, p99 of the tokens back to an expert's last use
    first_uses: float  # share of assignments to an expert new to the request
    working_set: dict[int, float]  # experts of a layer, by consecutive tokens of a request
    distinct_by_batch: dict[int, float]  # experts of a layer, by tokens of as many requests
    distinct_null: dict[int, float]
    requests: int
    tokens: int
    experts: int
    top_k: int


class _Layer(NamedTuple):
    """Sums of one layer, and its means by batch."""

    repeats: NDArray[np.int64]  # [lags, (experts shared, pairs of tokens)]
    gaps: NDArray[np.int64]  # [FARTHEST + 1] reuses by tokens back; [0] first uses
    windows: NDArray[np.int64]  # [windows, (distinct experts, windows)]
    distinct: NDArray[np.float64]  # [batches that there are requests for]
    null: NDArray[np.float64]  # [BATCHES]
    null_repeat: float


def analyze_locality(trace: Trace) -> LocalityResult:
    """How the decode tokens of `trace` reuse experts, within a request and over a batch.

    Raises InputError where it holds no decode tokens, TraceError where it is damaged.
    """
    runs = find_runs(trace)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        layers = list(pool.map(lambda layer: _walk(trace, layer, runs), trace.layers))
    layers = [layer for layer in layers if layer.gaps.sum()]
    if not layers:
        raise InputError(f"{trace}: no layer was recorded for any decode token")
    repeats = _means(LAGS, [layer.repeats for layer in layers], trace.top_k)
    gaps = reduce(np.add, [layer.gaps for layer in layers])
    distinct = np.mean([layer.distinct for layer in layers], axis=0).tolist()
    null = np.mean([layer.null for layer in layers], axis=0).tolist()
    return LocalityResult(
        next_token_repeat=repeats.get(1),
        repeat_null=float(np.mean([layer.null_repeat for layer in layers])),
        repeat_by_lag=repeats,
        reuse_tokens=_percentiles(gaps[1:]),
        first_uses=float(gaps[0] / gaps.sum()),
        working_set=_means(WINDOWS, [layer.windows for layer in layers], 1),
        distinct_by_batch=dict(zip(BATCHES, distinct, strict=False)),
        distinct_null=dict(zip(BATCHES, null, strict=True)),
        requests=runs.requests,
        tokens=len(runs.rows),
        experts=trace.experts_per_layer,
        top_k=trace.top_k,
    )


def repeats_of(
    request: NDArray[np.int32],
    position: NDArray[np.int32],
    experts: NDArray[np.unsignedinteger],
    size: int,
) -> NDArray[np.float64]:
    """[LAGS] repeat by lag of experts [tokens, layers, k] below `size`; NaN where no two tokens.

    Tokens in order of `request` and `position`, all of whatever phase.
    """
    from moeprof.analysis.kernels import walk_reuse

    runs = runs_of(np.arange(len(request)), request, position)
    repeats = np.zeros((len(LAGS), 2), np.int64)
    gaps = np.zeros(1, np.int64)
    there = np.ones(len(request), bool)
    for layer in range(experts.shape[1]):
        ids = experts[:, layer]
        walk_reuse(*runs, ids, there, size, LAGS, repeats, gaps)
    pairs = np.where(repeats[:, 1] > 0, repeats[:, 1], np.nan)
    share: NDArray[np.float64] = repeats[:, 0] / pairs / experts.shape[2]
    return share


def _walk(trace: Trace, layer: int, runs: Runs) -> _Layer:
    from moeprof.analysis.kernels import (  # Numba costs a second to import
        add_assignments,
        walk_reuse,
        walk_windows,
    )

    experts, k = trace.experts_per_layer, trace.top_k
    recorded = trace.recorded(layer)
    ids = np.zeros((trace.tokens, k), trace.experts(layer).dtype)
    ids[recorded] = trace.experts(layer)
    refuse_foreign_ids(trace, layer, int((ids >= experts).sum()))
    rows = runs.rows
    repeats = np.zeros((len(LAGS), 2), np.int64)
    windows = np.zeros((len(WINDOWS), 2), np.int64)
    gaps = np.zeros(FARTHEST + 1, np.int64)
    walk_reuse(rows, runs.starts, runs.request, ids, recorded, experts, LAGS, repeats, gaps)
    walk_windows(rows, runs.starts, ids, recorded, experts, WINDOWS, windows)
    there = recorded[rows]
    uses = np.zeros((runs.requests, experts), np.int64)
    add_assignments(ids[rows[there]], runs.request[there].astype(np.int32), uses)
    share = uses.sum(axis=0) * k / max(uses.sum(), 1)
    return _Layer(
        repeats,
        gaps,
        windows,
        _distinct(uses, k),
        (1 - (1 - share) ** np.array(BATCHES)[:, None]).sum(axis=1),
        float((share**2).sum() / k),
    )


def _distinct(uses: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """[batches] mean distinct experts of B requests' tokens, exact; `uses` [requests, experts].

    The mean over all sets of B of n requests of the product of x_r follows from those of n - 1:
    ((n - B) mean_B + B x_n mean_(B - 1)) / n, a sum without cancellation.
    """
    from moeprof.analysis.kernels import mean_products

    tokens = uses.sum(axis=1) / k
    missed = 1 - uses[tokens > 0] / tokens[tokens > 0, None]
    products = mean_products(missed, max(BATCHES))
    sizes = [size for size in BATCHES if size <= len(missed)]
    distinct: NDArray[np.float64] = (1 - products[sizes]).sum(axis=1)
    return distinct


def _means(sizes: NDArray[np.int64], sums: list[NDArray[np.int64]], of: int) -> dict[int, float]:
    """Mean over layers of sum / count / `of`, for the sizes that every layer has."""
    total = np.stack(sums)
    there = (total[:, :, 1] > 0).all(axis=0)
    means = (total[:, there, 0] / total[:, there, 1]).mean(axis=0) / of
    return dict(zip(sizes[there].tolist(), means.tolist(), strict=True))


def _percentiles(histogram: NDArray[np.int64]) -> dict[str, int]:
    """p50, p90 and p99 of values from 1, counted in `histogram`; empty where nothing was."""
    below = np.cumsum(histogram)
    if not below[-1]:
        return {}
    return {f"p{p}": int(np.searchsorted(below, below[-1] * p / 100)) + 1 for p in (50, 90, 99)}
