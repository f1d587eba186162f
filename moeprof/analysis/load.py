"""Expert load: who gets the assignments, how evenly, over layers, phases, labels, steps and time.

The measures of evenness stand in `evenness.py`, steps in `step_load.py`, what needs requests in
`request_load.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import ExpertCounts, count_experts
from moeprof.analysis.evenness import LayerLoad, imbalance, layer_load, on_gpus
from moeprof.analysis.request_load import RequestLoad, analyze_requests
from moeprof.analysis.step_load import BATCHES, StepImbalance, step_imbalance
from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.trace import Trace

WINDOWS = 48  # points of the imbalance over time: enough to see a change, few enough to plot


@dataclass(frozen=True)
class LoadResult(Result):
    """Load of a whole trace."""

    per_layer: list[LayerLoad]
    mean_imbalance: float  # mean over layers
    per_phase: dict[str, float]  # mean imbalance of one phase's tokens alone
    per_label: dict[str, float]  # mean imbalance of one label's tokens alone
    over_time: list[float]  # mean imbalance of consecutive windows of tokens
    window_tokens: int  # length of such a window
    tokens: int
    experts: int
    top_k: int
    gpus: int | None  # where given, loads are those of GPUs with experts in order of id
    by_request: RequestLoad | None  # None for a recording of counts
    per_step: list[StepImbalance]  # by tokens of a step; none without decode tokens
    load: NDArray[np.int64] = field(repr=False)  # [layers, experts or gpus] assignments


def analyze_load(
    trace: Trace,
    *,
    gpus: int | None = None,
    windows: int = WINDOWS,
    batches: Sequence[int] = BATCHES,
    seed: int = 0,
    counts: ExpertCounts | None = None,
) -> LoadResult:
    """Load by layer of `trace`; its imbalance by phase, label, time and step of `batches` tokens.

    With `gpus`, experts stand on GPUs in order of id and the loads are those of GPUs. `counts` are
    those of the trace, where they were counted before. Raises InputError on an empty trace, on no
    windows, on a batch below 1 or if the experts do not divide over `gpus`; TraceError on a damaged
    trace.
    """
    experts = trace.experts_per_layer
    if gpus is not None and (gpus < 1 or experts % gpus):
        raise InputError(f"gpus = {gpus}: {experts} experts do not divide evenly over them")
    counts = counts or count_experts(trace, windows)
    load = on_gpus(counts.total, gpus)
    mean = _mean_imbalance(load)
    ordered = not trace.counts_only
    return LoadResult(
        per_layer=[layer_load(n, row) for n, row in zip(trace.layers, load, strict=True)],
        mean_imbalance=mean,
        per_phase=_imbalance_by(counts.by_phase(), gpus),
        per_label=_imbalance_by(counts.by_label(), gpus),
        over_time=[_mean_imbalance(on_gpus(part, gpus)) for part in counts.by_window],
        window_tokens=counts.window_tokens,
        tokens=trace.tokens,
        experts=experts,
        top_k=trace.top_k,
        gpus=gpus,
        by_request=analyze_requests(trace, mean, gpus=gpus, seed=seed) if ordered else None,
        per_step=step_imbalance(trace, batches, gpus=gpus, seed=seed),
        load=load,
    )


def _imbalance_by(loads: dict[str, NDArray[np.int64]], gpus: int | None) -> dict[str, float]:
    return {name: _mean_imbalance(on_gpus(load, gpus)) for name, load in loads.items()}


def _mean_imbalance(load: NDArray[np.int64]) -> float:
    return float(imbalance(load).mean())
