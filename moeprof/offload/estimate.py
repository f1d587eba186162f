"""Decode speed without a trace: from a hit ratio, or from counts of any origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moeprof.errors import InputError
from moeprof.offload.rates import Rates
from moeprof.offload.timing import RESOURCES, Serve, step_seconds, time_layers
from moeprof.offload.work import DecodeWork
from moeprof.result import Result


@dataclass(frozen=True)
class DecodeEstimate(Result):
    """Speed with its band, and where the time goes. `share` maps resources to shares of one."""

    tok_s: float
    tok_s_low: float
    tok_s_high: float
    bound: str  # the resource with the largest share
    share: Mapping[str, float] = field(hash=False)
    step_s: float


def estimate_decode(
    work: DecodeWork,
    rates: Rates,
    *,
    experts: ArrayLike,
    misses: ArrayLike,
    drive_misses: ArrayLike = 0,
    weights: ArrayLike = 1.0,
    tokens: float = 1.0,
    serve: Serve | str = Serve.COPY,
    overlap: bool = True,
    apart: bool = False,
) -> DecodeEstimate:
    """Speed where a MoE layer's event is one of those in `experts` and `misses`, each as likely as
    `weights` says; a step has `tokens` tokens. The options are those of `time_layers`.

    The band has all rates slow, or all fast. Pass `spread_misses(top_k, hit_ratio)` where only a
    hit ratio is known.
    """
    likely = np.broadcast_to(np.asarray(weights, float), np.shape(np.asarray(misses)))
    if not likely.sum() > 0 or (likely < 0).any():
        raise InputError("weights: at least 0 each and above 0 in all are needed")
    seconds = {}
    for end in ("slow", "middle", "fast"):
        speeds = rates.at(end)
        times = time_layers(
            experts,
            misses,
            work,
            speeds,
            drive_misses=drive_misses,
            tokens=tokens,
            serve=serve,
            overlap=overlap,
            apart=apart,
        )
        mean = (times.shares * likely).reshape(len(RESOURCES), -1).sum(axis=1) / likely.sum()
        gpu, overhead = step_seconds(work, speeds, tokens)
        outside = [float(gpu), 0.0, 0.0, 0.0, overhead]  # in the order of RESOURCES
        seconds[end] = mean * work.moe_layers + outside
    return summarise(seconds, tokens)


def spread_misses(
    top_k: int, hit_ratio: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """(experts, misses, weights) of events whose experts hit independently: a binomial spread.

    A recording says how misses really fall together; this is the assumption where there is none.
    """
    if top_k < 1 or not 0 <= hit_ratio <= 1:
        raise InputError(f"top_k {top_k} and hit_ratio {hit_ratio}: from 1, and from 0 to 1")
    misses = np.arange(top_k + 1)
    ways = np.array([comb(top_k, int(m)) for m in misses], float)
    weights = ways * (1 - hit_ratio) ** misses * hit_ratio ** (top_k - misses)
    return np.full(top_k + 1, top_k), misses, weights


def summarise(seconds: Mapping[str, NDArray[np.float64]], tokens: float) -> DecodeEstimate:
    """An estimate from seconds by resource [resources] of a step of `tokens`, at each end."""
    total = {end: float(parts.sum()) for end, parts in seconds.items()}
    shares = dict(zip(RESOURCES, (seconds["middle"] / total["middle"]).tolist(), strict=True))
    return DecodeEstimate(
        tok_s=tokens / total["middle"],
        tok_s_low=tokens / total["slow"],
        tok_s_high=tokens / total["fast"],
        bound=max(shares, key=lambda name: shares[name]),
        share=shares,
        step_s=total["middle"],
    )
