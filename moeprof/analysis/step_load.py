"""Imbalance of one step of B tokens, what GPUs wait for, beside what chance alone makes.

A step takes one decode token of each of B different requests, any token of its own; where the
recording has fewer requests, some come twice, and that is said. Steps are drawn with a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.expert_sets import layer_ids
from moeprof.analysis.runs import Runs, find_runs
from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.threads import map_threads
from moeprof.trace import Phase, Trace

BATCHES = (1, 8, 64, 512)  # tokens a step
_TOKENS = 16_384  # of all steps of a batch size together
_FEWEST, _MOST = 16, 256  # steps of a size
_LARGEST = 16_384  # tokens of a step


@dataclass(frozen=True)
class StepImbalance(Result):
    """Max over mean of the loads of one step, over layers and steps."""

    tokens: int
    imbalance: float  # mean
    p95: float
    even: float  # mean of an even router, each token top-k different experts
    steps: int  # drawn
    resampled: bool  # more tokens than requests: some requests come twice in a step


def step_imbalance(
    trace: Trace,
    batches: Sequence[int] = BATCHES,
    *,
    gpus: int | None = None,
    seed: int = 0,
) -> list[StepImbalance]:
    """The imbalance of steps of each of `batches` tokens; empty where there are no decode tokens.

    With `gpus`, of GPUs that hold experts in order of id. Raises InputError for a batch below 1 or
    one so large that no engine takes it.
    """
    for size in batches:
        if not 1 <= size <= _LARGEST:
            raise InputError(f"batch {size}: a step takes 1 to {_LARGEST:,} tokens")
    if trace.counts_only or not (trace.phase != Phase.PREFILL).any():
        return []
    runs = find_runs(trace)
    rng = np.random.default_rng(seed)
    drawn = [_drawn_steps(runs, size, rng) for size in batches]
    layers = map_threads(lambda n: _layer(trace, n, drawn, gpus), trace.layers)
    measured = [np.concatenate(ratios) for ratios in zip(*layers, strict=True)]
    found = []
    for size, ratios in zip(batches, measured, strict=True):
        ratios = ratios[np.isfinite(ratios)]
        if len(ratios):
            even = even_step_imbalance(size, trace.experts_per_layer, trace.top_k, gpus, seed)
            p95 = float(np.quantile(ratios, 0.95))
            again = size > runs.requests
            found.append(
                StepImbalance(size, float(ratios.mean()), p95, even, steps_of(size), again)
            )
    return found


def steps_of(tokens: int) -> int:
    """How many steps of so many tokens are drawn."""
    return min(_MOST, max(_FEWEST, _TOKENS // tokens))


def _drawn_steps(runs: Runs, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """[steps, size] rows of the trace; in a step every request comes once before any twice."""
    bounds, requests = runs.bounds, runs.requests
    rounds = -(-size // requests)
    orders = [
        np.concatenate([rng.permutation(requests) for _ in range(rounds)])[:size]
        for _ in range(steps_of(size))
    ]
    chosen = np.stack(orders)
    lengths = np.diff(bounds)[chosen]
    return np.asarray(runs.rows[bounds[chosen] + (rng.random(chosen.shape) * lengths).astype(int)])


def _layer(
    trace: Trace, layer: int, drawn: list[NDArray[np.int64]], gpus: int | None
) -> list[NDArray[np.float64]]:
    """[sizes][steps] imbalance of one layer; NaN where none of a step's tokens was recorded."""
    ids, recorded = layer_ids(trace, layer)
    return [
        imbalance_of_steps(ids[rows], recorded[rows], trace.experts_per_layer, gpus)
        for rows in drawn
    ]


def imbalance_of_steps(
    ids: NDArray[np.integer],
    there: NDArray[np.bool_],
    experts: int,
    gpus: int | None = None,
) -> NDArray[np.float64]:
    """[steps] max over mean of the loads of experts, or of GPUs; `ids` [steps, tokens, k]."""
    step = np.broadcast_to(np.arange(len(ids))[:, None], there.shape)[there]
    key = step[:, None] * experts + ids[there]
    loads = np.bincount(key.ravel(), minlength=len(ids) * experts).reshape(len(ids), -1)
    if gpus is not None:
        loads = loads.reshape(len(ids), gpus, -1).sum(axis=2)
    total = loads.sum(axis=1)
    ratio: NDArray[np.float64] = loads.max(axis=1) * loads.shape[1] / np.where(total, total, np.nan)
    return ratio


def even_step_imbalance(
    tokens: int, experts: int, top_k: int, gpus: int | None = None, seed: int = 0
) -> float:
    """Mean imbalance of steps whose tokens choose `top_k` different experts evenly at random."""
    rng = np.random.default_rng(seed)
    steps = steps_of(tokens)
    order = rng.random((steps, tokens, experts), np.float32)
    ids = order.argpartition(top_k - 1, axis=2)[..., :top_k] if top_k < experts else order.argsort()
    there = np.ones((steps, tokens), bool)
    return float(imbalance_of_steps(ids, there, experts, gpus).mean())
