"""Locality: how soon experts are used again, and how many distinct ones a span or a batch needs.

Over decode tokens, those that are not known to be of a prompt, in order of position; `prefill` is
the same over prompts. With S_t the experts of token t of a request, n_e the assignments to e,
N = sum n_e, E experts and top-k:
next_token_repeat = mean over layers and consecutive tokens of |S_t and S_(t-1)| / k,
repeat_by_lag{d} the same for tokens d apart,
working_set{w} = mean over layers and windows of w consecutive tokens of their distinct experts,
distinct_by_batch{B}: a step with a token each of B requests, see `batch_experts.py`,
distinct_null{B} = mean over layers of sum_e 1 - (1 - p_e)^B with p_e = n_e k / N,
distinct_uniform{B} = E (1 - ((E - k) / E)^B), what an even router would need.
Intervals draw requests with replacement and cost no pass of their own: every layer sums what each
request adds. That of distinct_by_batch is as wide as the formula for B > R has it, which resamples
can follow, about the figure shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.batch_experts import (
    BATCHES,
    distinct_by_size,
    distinct_independent,
    drawn_sets,
)
from moeprof.analysis.chance import even_router_distinct
from moeprof.analysis.consistency import (
    SEGMENTS,
    SegmentConsistency,
    Segments,
    best_group,
    choose_segments,
    use_histogram,
)
from moeprof.analysis.expert_sets import chosen_rows, layer_ids, sets_of
from moeprof.analysis.prompt_locality import PromptLocality, analyze_prompts
from moeprof.analysis.repeated_beginnings import RepeatedBeginnings, find_repeated
from moeprof.analysis.reuse import LAGS, PairsApart, reuse_gaps
from moeprof.analysis.runs import Runs, find_runs, request_uses
from moeprof.analysis.segment_cache import SegmentCache, replay_segment_cache
from moeprof.analysis.uncertainty import Interval, draw_requests, interval_of
from moeprof.analysis.windows import Span, distinct_of, doubling_spans
from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.threads import map_threads
from moeprof.trace import Phase, Trace

LONGEST_WINDOW = 256  # tokens
FARTHEST = 4096  # tokens; a longer way back to the last use counts as this


@dataclass(frozen=True)
class LocalityResult(Result):
    """Reuse of experts over time and over a batch, means over layers. None: no pair of tokens."""

    next_token_repeat: float | None
    repeat_interval: Interval | None  # of next_token_repeat; None with a single request
    repeat_null: float  # the same if each token chose for itself: mean of sum_e p_e^2 / k
    repeat_by_lag: dict[int, float]  # by tokens apart
    reuse_tokens: dict[str, int]  # p50, p90, p99 of the tokens back to an expert's last use
    first_uses: float  # share of assignments to an expert new to the request
    working_set: dict[int, float]  # experts of a layer, by consecutive tokens of a request
    distinct_by_batch: dict[int, float]  # experts of a layer, by tokens of as many requests
    distinct_resampled: dict[int, float]  # for more tokens than requests: they are drawn again
    distinct_intervals: dict[int, Interval]  # of both
    distinct_null: dict[int, float]
    distinct_uniform: dict[int, float]
    prefill: PromptLocality | None  # None: no tokens are known to be of prompts
    repeated: RepeatedBeginnings  # what beginnings that requests share do to these figures
    segments: list[SegmentConsistency]  # SRP by length of a segment
    segment_cache: SegmentCache | None  # SCH by slots
    requests: int
    tokens: int
    experts: int
    top_k: int


class _Walk(NamedTuple):
    """What the walks over every layer share."""

    runs: Runs
    pairs: PairsApart
    spans: list[Span]
    sets: NDArray[np.floating]  # of requests, by batch
    segments: list[Segments]
    drawn: NDArray[np.float64]  # [resamples, requests]


class _Layer(NamedTuple):
    """Sums of one layer, and its means by batch."""

    repeats: NDArray[np.int64]  # [LAGS, (experts shared, pairs of tokens)]
    repeats_drawn: NDArray[np.float64]  # [resamples] at the first lag
    gaps: NDArray[np.int64]  # [FARTHEST + 1] reuses by tokens back; [0] first uses
    windows: NDArray[np.int64]  # [spans, (distinct experts, windows)]
    distinct: NDArray[np.float64]  # [batches that there are requests for]
    resampled: NDArray[np.float64]  # [BATCHES] requests drawn with replacement
    distinct_drawn: NDArray[np.float64]  # [resamples, BATCHES]
    null: NDArray[np.float64]  # [BATCHES]
    null_repeat: float
    uses: list[NDArray[np.int64]]  # of segments, then of shuffled ones


def analyze_locality(trace: Trace, *, seed: int = 0) -> LocalityResult:
    """How the decode tokens of `trace` reuse experts, within a request and over a batch.

    Raises InputError where it holds no decode tokens, TraceError where it is damaged.
    """
    runs = find_runs(trace)
    segments = [choose_segments(runs, length, seed) for length in SEGMENTS]
    walk = _Walk(
        runs,
        PairsApart(runs),
        doubling_spans(runs, LONGEST_WINDOW),
        drawn_sets(runs.requests, seed),
        [found for found in segments if found],
        draw_requests(runs.requests, seed=seed).astype(np.float64),
    )
    layers = map_threads(lambda layer: _walk(trace, layer, walk), trace.layers)
    layers = [layer for layer in layers if layer.gaps.sum()]
    if not layers:
        raise InputError(f"{trace}: no layer was recorded for any decode token")
    return _result(trace, walk, layers, seed)


def _walk(trace: Trace, layer: int, walk: _Walk) -> _Layer:
    runs, experts, k = walk.runs, trace.experts_per_layer, trace.top_k
    ids, recorded = layer_ids(trace, layer)
    ids, there = chosen_rows(ids, runs.rows), recorded[runs.rows]
    sets = sets_of(ids, experts, there)
    shared, pairs = walk.pairs.shared_by_request(sets, there)
    uses = request_uses(ids, there, runs, experts)
    tokens = uses.sum(axis=1) / k
    seen = tokens > 0
    share = uses / np.where(seen, tokens, 1)[:, None]
    popularity = uses.sum(axis=0) / max(tokens.sum(), 1)
    drawn = walk.drawn @ share / np.maximum(walk.drawn @ seen, 1)[:, None]
    return _Layer(
        walk.pairs.shared(sets, there),
        ratio(walk.drawn @ shared, walk.drawn @ pairs) / k,
        reuse_gaps(ids, there, runs.request, FARTHEST),
        distinct_of(sets, there, walk.spans).sum(axis=2),
        distinct_by_size(share, walk.sets),
        distinct_independent(share.sum(axis=0) / max(seen.sum(), 1)),
        distinct_independent(drawn),
        distinct_independent(popularity),
        float((popularity**2).sum() / k),
        [
            use_histogram(ids, there, places, experts)
            for kind in zip(*walk.segments, strict=True)
            for places in kind
        ],
    )


def ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quotient, NaN where there is nothing below."""
    quotient: NDArray[np.float64] = above / np.where(below > 0, below, np.nan)
    return quotient


def _result(trace: Trace, walk: _Walk, layers: list[_Layer], seed: int) -> LocalityResult:
    runs, k = walk.runs, trace.top_k
    repeats = _means(LAGS, [layer.repeats for layer in layers], k)
    gaps = reduce(np.add, [layer.gaps for layer in layers])
    several = runs.requests > 1
    null = np.mean([layer.null for layer in layers], axis=0)
    uniform = even_router_distinct(trace.experts_per_layer, k, BATCHES)
    measured, resampled, intervals = _batches(layers)
    widths = [span.width for span in walk.spans]
    return LocalityResult(
        next_token_repeat=repeats.get(1),
        repeat_interval=_repeat_interval(layers) if several and 1 in repeats else None,
        repeat_null=float(np.mean([layer.null_repeat for layer in layers])),
        repeat_by_lag=repeats,
        reuse_tokens=_percentiles(gaps[1:]),
        first_uses=float(gaps[0] / gaps.sum()),
        working_set=_means(widths, [layer.windows for layer in layers], 1),
        distinct_by_batch=measured,
        distinct_resampled=resampled,
        distinct_intervals=intervals if several else {},
        distinct_null=dict(zip(BATCHES, null.tolist(), strict=True)),
        distinct_uniform=dict(zip(BATCHES, uniform.tolist(), strict=True)),
        prefill=analyze_prompts(trace, seed=seed) if _has_prompts(trace) else None,
        repeated=find_repeated(trace, seed=seed),
        segments=_segments(walk, layers, k),
        segment_cache=replay_segment_cache(trace, runs),
        requests=runs.requests,
        tokens=len(runs.rows),
        experts=trace.experts_per_layer,
        top_k=k,
    )


def _has_prompts(trace: Trace) -> bool:
    return bool((trace.phase == Phase.PREFILL).any())


def _repeat_interval(layers: list[_Layer]) -> Interval:
    drawn = np.mean([layer.repeats_drawn for layer in layers], axis=0)
    return interval_of(drawn[np.isfinite(drawn)])  # a resample of requests of one token has no pair


def _batches(
    layers: list[_Layer],
) -> tuple[dict[int, float], dict[int, float], dict[int, Interval]]:
    """Distinct experts by batch: for as many requests, for more, and the intervals of both."""
    measured = np.mean([layer.distinct for layer in layers], axis=0)
    again = np.mean([layer.resampled for layer in layers], axis=0)
    drawn = np.mean([layer.distinct_drawn for layer in layers], axis=0)
    shown = np.concatenate([measured, again[len(measured) :]])
    intervals = {
        size: interval_of(drawn[:, n] - drawn[:, n].mean() + shown[n])
        for n, size in enumerate(BATCHES)
    }
    named = dict(zip(BATCHES, shown.tolist(), strict=True))
    enough = dict(list(named.items())[: len(measured)])
    return enough, {size: named[size] for size in named if size not in enough}, intervals


def _segments(walk: _Walk, layers: list[_Layer], top_k: int) -> list[SegmentConsistency]:
    found = []
    for number, segments in enumerate(walk.segments):
        real, shuffled = (
            reduce(np.add, [layer.uses[number + start] for layer in layers])
            for start in (0, len(walk.segments))
        )
        srp, group = best_group(real, top_k)
        null, _ = best_group(shuffled, top_k)
        if not real[1:].any() or not shuffled[1:].any():
            continue  # every segment had a token that was not recorded
        count, length = segments.consecutive.shape
        found.append(SegmentConsistency(length, srp, null, group, count))
    return found


def _means(sizes: Sequence[int], sums: list[NDArray[np.int64]], of: int) -> dict[int, float]:
    """Mean over layers of sum / count / `of`, for the sizes that every layer has."""
    total = np.stack(sums)
    there = (total[:, :, 1] > 0).all(axis=0)
    means = (total[:, there, 0] / total[:, there, 1]).mean(axis=0) / of
    return dict(zip(np.array(sizes)[there].tolist(), means.tolist(), strict=True))


def _percentiles(histogram: NDArray[np.int64]) -> dict[str, int]:
    """p50, p90 and p99 of values from 1, counted in `histogram`; empty where nothing was."""
    below = np.cumsum(histogram)
    if not below[-1]:
        return {}
    return {f"p{p}": int(np.searchsorted(below, below[-1] * p / 100)) + 1 for p in (50, 90, 99)}
