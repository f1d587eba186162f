"""Which experts to adapt to a domain: those that most of its routing goes to.

ESFT (Wang et al. 2024, arXiv 2407.01906; rule read in deepseek-ai/ESFT,
scripts/expert/generate_expert_config.py): of each layer, experts in falling order of their score
until the scores reach a share p of the layer's. The score of an expert is its token selection
ratio, the share of the domain's assignments, or its average gate score, the share of its gate
weight. The paper takes p = 0.2 of the first and 0.1 of the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.pruning.sums import DomainSums
from moeprof.result import Result


@dataclass(frozen=True)
class LayerExperts(Result):
    """Experts of one layer, by native index."""

    layer: int
    experts: list[int]


@dataclass(frozen=True)
class AdapterTargets(Result):
    """Experts to adapt to one domain. Shares are means over layers, of what was held out."""

    domain: str
    score: str  # "token" or "gate"
    share: float  # p: what the experts reach on what they were chosen by
    experts: int  # in all layers
    of_experts: float  # share of all experts
    held_out: float | None  # share of the domain's assignments on requests held out; None: none is
    elsewhere: float | None  # share of the other domains' assignments; None: there are none
    per_layer: list[LayerExperts]


def find_targets(
    sums: DomainSums, domains: list[str], layers: tuple[int, ...], share: float, score: str
) -> list[AdapterTargets]:
    """The experts of every domain by `score`, which is "gate" only where weights were recorded."""
    scored = sums.weight if score == "gate" and sums.weight is not None else sums.counts
    return [
        _targets(sums, scored[0, place], place, name, layers, share, score)
        for place, name in enumerate(domains)
        if sums.counts[0, place].any()
    ]


def choose_experts(scores: NDArray[np.floating], share: float) -> NDArray[np.bool_]:
    """[layers, experts] the fewest of each layer whose `scores` reach `share` of its sum."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    total = ranked.sum(axis=1, keepdims=True)
    before = np.cumsum(ranked, axis=1) - ranked  # what those in front of each have
    chosen = np.zeros(scores.shape, bool)
    needed = (before < share * total - 1e-12 * total) & (total > 0)
    np.put_along_axis(chosen, order, needed, axis=1)
    return chosen


def _targets(
    sums: DomainSums,
    scores: NDArray[np.floating],
    place: int,
    domain: str,
    layers: tuple[int, ...],
    share: float,
    score: str,
) -> AdapterTargets:
    chosen = choose_experts(scores, share)
    test = sums.counts[1]
    others = np.delete(test, place, axis=0).sum(axis=0)
    return AdapterTargets(
        domain=domain,
        score=score,
        share=share,
        experts=int(chosen.sum()),
        of_experts=float(chosen.mean()),
        held_out=_reached(test[place], chosen) if test[place].any() else None,
        elsewhere=_reached(others, chosen) if others.any() else None,
        per_layer=[
            LayerExperts(layer, np.flatnonzero(row).tolist())
            for layer, row in zip(layers, chosen, strict=True)
        ],
    )


def _reached(load: NDArray[np.int64], chosen: NDArray[np.bool_]) -> float:
    """Mean over layers of the share of `load` [layers, experts] that `chosen` get."""
    total = np.maximum(load.sum(axis=1), 1)
    return float(((load * chosen).sum(axis=1) / total).mean())
