"""How near synthetic routing comes to a recording: figures of both, and their differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeprof.analysis import LocalityResult, analyze_load, analyze_locality
from moeprof.cache import lru_curve
from moeprof.result import Result
from moeprof.trace import Phase, Trace

# What a fit aims at; other figures stand beside it.
AIMED = ("imbalance", "next-token repeat", "distinct by batch", "lru hit ratio")


@dataclass(frozen=True)
class Comparison(Result):
    """One figure of both. Where it is a curve, the point at which they differ most."""

    metric: str
    at: int | None  # batch, tokens apart or slots; None where the metric is one number
    original: float
    synthetic: float
    difference: float  # relative to the original, or absolute where that is 0


@dataclass(frozen=True)
class FitJudgement(Result):
    """Every figure compared, and the largest relative difference of those that are aimed at."""

    comparisons: list[Comparison]
    worst: float


def judge_fit(original: Trace, synthetic: Trace) -> FitJudgement:
    """Imbalance, repeats, working sets, distinct experts by batch and the LRU curve of both.

    LRU: the curve with slots per layer, compared as hit ratios from top-k slots on, below which an
    atomic cache cannot hold one token's experts.
    """
    ones, others = _figures(original), _figures(synthetic)
    comparisons = [
        _worst(metric, one, others[metric])
        for metric, one in ones.items()
        if one.keys() & others.get(metric, {}).keys()
    ]
    return FitJudgement(
        comparisons, max(abs(c.difference) for c in comparisons if c.metric in AIMED)
    )


def _figures(trace: Trace) -> dict[str, dict[int | None, float]]:
    """The values of every metric by where they stand."""
    curve = lru_curve(trace)
    figures: dict[str, dict[int | None, float]] = {
        "imbalance": {None: analyze_load(trace).mean_imbalance},
        "lru hit ratio": {
            slots: hit
            for slots, hit in zip(curve.slots, curve.hit_ratio, strict=True)
            if slots >= trace.top_k
        },
    }
    if (trace.phase != Phase.PREFILL).any():
        figures |= _locality_figures(analyze_locality(trace))
    return figures


def _locality_figures(locality: LocalityResult) -> dict[str, dict[int | None, float]]:
    curves = {
        "repeat by lag": locality.repeat_by_lag,
        "working set": locality.working_set,
        "distinct by batch": locality.distinct_by_batch,
        "distinct by chance": locality.distinct_null,
    }
    figures: dict[str, dict[int | None, float]] = {
        metric: dict(curve.items()) for metric, curve in curves.items() if curve
    }
    if locality.next_token_repeat is not None:
        figures["next-token repeat"] = {None: locality.next_token_repeat}
    return figures


def _worst(
    metric: str, one: Mapping[int | None, float], other: Mapping[int | None, float]
) -> Comparison:
    """The comparison where the two differ most, among the places that both have."""
    return max(
        (_compared(metric, at, one[at], other[at]) for at in one if at in other),
        key=lambda comparison: abs(comparison.difference),
    )


def _compared(metric: str, at: int | None, one: float, other: float) -> Comparison:
    return Comparison(metric, at, one, other, other / one - 1 if one else other)
