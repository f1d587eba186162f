"""Locality of prompts: the distinct experts of a chunk of consecutive tokens of one prompt.

distinct_by_chunk{B} = mean over layers and chunks of B tokens, end to end from where a prompt
starts, of their distinct experts; distinct_null{B} is that of B tokens drawn one by one by the
popularity of experts among prompt tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.batch_experts import BATCHES, distinct_independent
from moeprof.analysis.expert_sets import chosen_rows, layer_ids, sets_of
from moeprof.analysis.reuse import PairsApart
from moeprof.analysis.runs import Runs, find_runs, request_uses
from moeprof.analysis.uncertainty import Interval, draw_requests, interval_of
from moeprof.analysis.windows import Span, distinct_of, doubling_spans
from moeprof.result import Result
from moeprof.threads import map_threads
from moeprof.trace import Phase, Trace


@dataclass(frozen=True)
class PromptLocality(Result):
    """Reuse of experts within prompts, means over layers."""

    distinct_by_chunk: dict[int, float]  # experts of a layer, by consecutive tokens of a prompt
    distinct_intervals: dict[int, Interval]  # of it; none with a single prompt
    distinct_null: dict[int, float]  # by the same sizes
    next_token_repeat: float | None
    requests: int
    tokens: int


class _Layer(NamedTuple):
    distinct: NDArray[np.int64]  # [spans, (distinct experts, chunks)]
    drawn: NDArray[np.float64]  # [spans, resamples] distinct experts a chunk
    null: NDArray[np.float64]  # [BATCHES]
    repeats: NDArray[np.int64]  # experts shared by neighbours, pairs of tokens


def analyze_prompts(trace: Trace, *, seed: int = 0) -> PromptLocality | None:
    """The locality of the prompt tokens of `trace`; None where no layer was recorded for them.

    Raises InputError where it holds no prompt tokens, TraceError where it is damaged.
    """
    return analyze_runs(trace, find_runs(trace, Phase.PREFILL), seed=seed)


def analyze_runs(trace: Trace, runs: Runs, *, seed: int = 0) -> PromptLocality | None:
    """The same of any `runs`, whose chunks start where they do."""
    pairs, spans = PairsApart(runs, lags=(1,)), doubling_spans(runs, BATCHES[-1])
    drawn = draw_requests(runs.requests, seed=seed).astype(np.float64)
    layers = map_threads(lambda n: _walk(trace, n, runs, pairs, spans, drawn), trace.layers)
    layers = [layer for layer in layers if layer.distinct[0, 1]]
    return _result(trace, runs, spans, layers) if layers else None


def _walk(
    trace: Trace,
    layer: int,
    runs: Runs,
    pairs: PairsApart,
    spans: list[Span],
    drawn: NDArray[np.float64],
) -> _Layer:
    ids, recorded = layer_ids(trace, layer)
    ids, there = chosen_rows(ids, runs.rows), recorded[runs.rows]
    sets = sets_of(ids, trace.experts_per_layer, there)
    sums = distinct_of(sets, there, spans)
    windows = sums[:, 1] @ drawn.T
    uses = request_uses(ids, there, runs, trace.experts_per_layer).sum(axis=0)
    return _Layer(
        sums.sum(axis=2),
        sums[:, 0] @ drawn.T / np.where(windows > 0, windows, np.nan),
        distinct_independent(uses / max(there.sum(), 1)),
        pairs.shared(sets, there)[0],
    )


def _result(trace: Trace, runs: Runs, spans: list[Span], layers: list[_Layer]) -> PromptLocality:
    sums = np.stack([layer.distinct for layer in layers])
    there = [n for n in range(len(spans)) if (sums[:, n, 1] > 0).all()]
    means = (sums[:, there, 0] / sums[:, there, 1]).mean(axis=0)
    drawn = np.mean([layer.drawn for layer in layers], axis=0)
    null = np.mean([layer.null for layer in layers], axis=0)
    shared, pairs = np.stack([layer.repeats for layer in layers]).T
    sizes = [spans[n].width for n in there]
    seen = np.isfinite(drawn)  # not every resample has a prompt that is long enough
    intervals = {size: interval_of(drawn[n, seen[n]]) for n, size in zip(there, sizes, strict=True)}
    return PromptLocality(
        distinct_by_chunk=dict(zip(sizes, means.tolist(), strict=True)),
        distinct_intervals=intervals if runs.requests > 1 else {},
        distinct_null={size: float(null[n]) for n, size in zip(there, sizes, strict=True)},
        next_token_repeat=(
            float((shared / pairs).mean() / trace.top_k) if (pairs > 0).all() else None
        ),
        requests=runs.requests,
        tokens=len(runs.rows),
    )
