"""How even a load is: the textbook measures, each over the experts of a layer, or its GPUs.

With n_e the assignments to expert e of a layer, E experts, N = sum n_e and p_e = n_e / N:
imbalance = max n_e / (N / E) >= 1, balancedness = 1 / imbalance in (0, 1],
entropy = -sum p_e log2 p_e, in bits,
gini = sum_i (2 i - E - 1) n_(i) / (E N) over loads sorted ascending, i from 1 (Gini 1912),
coefficient of variation = standard deviation of n_e over their mean,
Jain's index = (sum n_e)^2 / (E sum n_e^2) in [1 / E, 1] (Jain, Chiu, Hawe 1984), which is
1 / (1 + coefficient of variation^2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from moeprof.result import Result

Real = TypeVar("Real", bound=np.floating)


def entropy_bits(share: NDArray[Real]) -> NDArray[Real]:
    """Entropy of `share` [..., experts] over the last axis; 0 log 0 = 0."""
    logs = np.log2(share, out=np.zeros_like(share), where=share > 0)
    bits: NDArray[Real] = -np.einsum("...e,...e->...", share, logs)
    return bits


@dataclass(frozen=True)
class LayerLoad(Result):
    """How evenly one layer's assignments spread over its experts, or over GPUs."""

    layer: int  # native index
    assignments: int
    imbalance: float
    balancedness: float
    gini: float
    entropy: float  # bits
    coefficient_of_variation: float
    jain: float  # in [1 / experts, 1]
    unused_experts: int


def on_gpus(load: NDArray[np.int64], gpus: int | None) -> NDArray[np.int64]:
    """[..., experts] to [..., gpus], consecutive experts together; the same if `gpus` is None."""
    return load if gpus is None else load.reshape(*load.shape[:-1], gpus, -1).sum(axis=-1)


def imbalance(load: NDArray[np.int64]) -> NDArray[np.float64]:
    """[layers] max over mean of `load` [layers, experts]; 1 for a layer without assignments."""
    mean = load.mean(axis=1)
    ratio: NDArray[np.float64] = np.divide(
        load.max(axis=1), mean, out=np.ones(len(load)), where=mean > 0
    )
    return ratio


def layer_load(layer: int, load: NDArray[np.int64]) -> LayerLoad:
    """Every measure of the `load` [experts] of one layer; even where it has no assignments."""
    total = int(load.sum())
    size = len(load)
    ratio = float(imbalance(load[None])[0])
    share = load[load > 0] / max(total, 1)
    order = 2 * np.arange(1, size + 1) - size - 1
    variation = float(load.std() / load.mean()) if total else 0.0
    return LayerLoad(
        layer=layer,
        assignments=total,
        imbalance=ratio,
        balancedness=1 / ratio,
        gini=float((order * np.sort(load)).sum() / (size * total)) if total else 0.0,
        entropy=float(-(share * np.log2(share)).sum()),
        coefficient_of_variation=variation,
        jain=1 / (1 + variation**2),
        unused_experts=int((load == 0).sum()),
    )
