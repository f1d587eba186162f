"""Expert load: who gets the assignments, how evenly, over layers, phases, labels and time.

With n_e the assignments to expert e of a layer, E experts and N = sum n_e:
imbalance = max n_e / (N / E) >= 1, balancedness = 1 / imbalance in (0, 1],
entropy = -sum p_e log2 p_e with p_e = n_e / N, in bits,
gini = sum_i (2 i - E - 1) n_(i) / (E N) over loads sorted ascending, i from 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import ExpertCounts, count_experts
from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.trace import Trace

WINDOWS = 48  # points of the imbalance over time: enough to see a change, few enough to plot


@dataclass(frozen=True)
class LayerLoad(Result):
    """How evenly one layer's assignments spread over its experts, or over GPUs."""

    layer: int  # native index
    assignments: int
    imbalance: float
    balancedness: float
    gini: float
    entropy: float  # bits
    unused_experts: int


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
    load: NDArray[np.int64] = field(repr=False)  # [layers, experts or gpus] assignments


def analyze_load(trace: Trace, *, gpus: int | None = None, windows: int = WINDOWS) -> LoadResult:
    """Load by layer of `trace`, and its imbalance by phase, label and time.

    With `gpus`, experts stand on GPUs in order of id and the loads are those of GPUs.
    Raises InputError on an empty trace, on no windows, or if the experts do not divide over
    `gpus`; TraceError on a damaged trace.
    """
    return load_result(trace, count_experts(trace, windows), gpus=gpus)


def load_result(trace: Trace, counts: ExpertCounts, *, gpus: int | None = None) -> LoadResult:
    """The load of experts, or of GPUs, from the `counts` of `trace`: no pass over its tokens."""
    experts = trace.experts_per_layer
    if gpus is not None and (gpus < 1 or experts % gpus):
        raise InputError(f"gpus = {gpus}: {experts} experts do not divide evenly over them")
    load = _on_gpus(counts.total, gpus)
    return LoadResult(
        per_layer=[_layer_load(n, row) for n, row in zip(trace.layers, load, strict=True)],
        mean_imbalance=_mean_imbalance(load),
        per_phase=_imbalance_by(counts.by_phase(), gpus),
        per_label=_imbalance_by(counts.by_label(), gpus),
        over_time=[_mean_imbalance(_on_gpus(part, gpus)) for part in counts.by_window],
        window_tokens=counts.window_tokens,
        tokens=trace.tokens,
        experts=experts,
        top_k=trace.top_k,
        gpus=gpus,
        load=load,
    )


def _imbalance_by(loads: dict[str, NDArray[np.int64]], gpus: int | None) -> dict[str, float]:
    return {name: _mean_imbalance(_on_gpus(load, gpus)) for name, load in loads.items()}


def _on_gpus(load: NDArray[np.int64], gpus: int | None) -> NDArray[np.int64]:
    """[layers, experts] to [layers, gpus], consecutive experts together."""
    return load if gpus is None else load.reshape(len(load), gpus, -1).sum(axis=2)


def imbalance(load: NDArray[np.int64]) -> NDArray[np.float64]:
    """[layers] max over mean of `load` [layers, experts]; 1 for a layer without assignments."""
    mean = load.mean(axis=1)
    ratio: NDArray[np.float64] = np.divide(
        load.max(axis=1), mean, out=np.ones(len(load)), where=mean > 0
    )
    return ratio


def _mean_imbalance(load: NDArray[np.int64]) -> float:
    return float(imbalance(load).mean())


def _layer_load(layer: int, load: NDArray[np.int64]) -> LayerLoad:
    total = int(load.sum())
    size = len(load)
    ratio = float(imbalance(load[None])[0])
    share = load[load > 0] / max(total, 1)
    order = 2 * np.arange(1, size + 1) - size - 1
    return LayerLoad(
        layer=layer,
        assignments=total,
        imbalance=ratio,
        balancedness=1 / ratio,
        gini=float((order * np.sort(load)).sum() / (size * total)) if total else 0.0,
        entropy=float(-(share * np.log2(share)).sum()),
        unused_experts=int((load == 0).sum()),
    )
