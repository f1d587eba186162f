"""How much routing is kept when the least used experts go, judged on what was not fitted on.

Coverage is the share of assignments (or of gate weight) that go to experts that are kept. What the
router would choose instead of a pruned expert is not in a recording, so coverage tells how much is
touched, not what a model loses by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.pruning.sums import DomainSums
from moeprof.result import Result

GRID = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)  # shares of a layer's experts
SAFE = 0.95  # of the routing of the domain that suffers most: kept where nobody says how many


@dataclass(frozen=True)
class PruningRow(Result):
    """What is kept when `pruned` experts of every layer go. Shares are of assignments."""

    pruned: int  # of each layer
    kept: int
    coverage: float  # on what was held out, mean over layers
    fitted: float  # the same on what the choice was fitted to
    by_chance: float  # if experts were chosen blindly: kept / experts
    gate_weight: float | None  # share of gate weight kept, on what was held out
    worst_domain: str
    worst_coverage: float
    unseen_domain: str | None  # that suffers most if the choice was made without it
    unseen_coverage: float | None
    pooled: float  # coverage if as many go in all, wherever they are least used
    bytes_saved: int | None


class Order(NamedTuple):
    """Which experts go first."""

    by_layer: NDArray[np.intp]  # [layers, experts] the least used of each layer first
    pooled: NDArray[np.intp]  # flat (layer x experts + expert), the least used of all first


def order_experts(load: NDArray[np.int64], top_k: int) -> Order:
    """The order of pruning by `load` [layers, experts]; ties by id.

    Of the pooled order each layer's k most used are left out: a router needs k.
    """
    by_layer = np.argsort(load, axis=1, kind="stable")
    share = _shares(load)
    rows = np.arange(len(load))[:, None]
    share[rows, by_layer[:, load.shape[1] - top_k :]] = np.inf
    pooled = np.argsort(share, axis=None, kind="stable")
    return Order(by_layer, pooled[: int(np.isfinite(share).sum())])


def coverage_by_pruned(
    load: NDArray[np.floating], by_layer: NDArray[np.intp]
) -> NDArray[np.float64]:
    """[..., experts + 1] share of `load` [..., layers, experts] kept when n of each layer go."""
    ordered = np.take_along_axis(_shares(load), np.broadcast_to(by_layer, load.shape), axis=-1)
    gone = np.cumsum(ordered, axis=-1).mean(axis=-2)
    kept: NDArray[np.float64] = 1 - np.concatenate([np.zeros_like(gone[..., :1]), gone], axis=-1)
    return kept


def judge_pruning(
    sums: DomainSums,
    domains: list[str],
    chosen: NDArray[np.intp],
    *,
    top_k: int,
    keep: int | None,
    expert_bytes: int | None,
) -> tuple[list[PruningRow], PruningRow, Order]:
    """A row for each size of the grid, the one that is asked for, and the order of pruning.

    The choice is fitted to the domains `chosen`, and judged on their half held out. Where `keep`
    is None it is the fewest whose domain that suffers most keeps SAFE of its routing.
    """
    fit, test = sums.counts
    order = order_experts(fit[chosen].sum(axis=0), top_k)
    layers, size = fit.shape[1:]
    judged = test[chosen].sum(axis=0)
    curves = _Curves(
        coverage=coverage_by_pruned(judged, order.by_layer),
        fitted=coverage_by_pruned(fit[chosen].sum(axis=0), order.by_layer),
        weight=None
        if sums.weight is None
        else coverage_by_pruned(sums.weight[1][chosen].sum(axis=0), order.by_layer),
        by_domain=coverage_by_pruned(test, order.by_layer),
        unseen=_unseen(fit, test, top_k) if len(chosen) == len(domains) > 1 else None,
        pooled=_pooled(judged, order.pooled),
        tested=test.sum(axis=(1, 2)) > 0,
    )

    def row(pruned: int) -> PruningRow:
        return _row(curves, domains, pruned, size, layers, expert_bytes)

    most = size - top_k
    grid = sorted({min(round(share * size), most) for share in GRID} - {0})
    asked = size - keep if keep is not None else _safe(curves, most)
    return [row(pruned) for pruned in sorted({*grid, asked} - {0})], row(asked), order


class _Curves(NamedTuple):
    """Coverage by experts pruned of each layer, [experts + 1]."""

    coverage: NDArray[np.float64]
    fitted: NDArray[np.float64]
    weight: NDArray[np.float64] | None
    by_domain: NDArray[np.float64]  # [domains, experts + 1]
    unseen: NDArray[np.float64] | None  # [domains, experts + 1]
    pooled: NDArray[np.float64]  # [experts pruned in all + 1]
    tested: NDArray[np.bool_]  # [domains] whether any of its tokens were held out


def _row(
    curves: _Curves, domains: list[str], pruned: int, size: int, layers: int, each: int | None
) -> PruningRow:
    worst = _worst(curves.by_domain[:, pruned], curves.tested)
    unseen = None if curves.unseen is None else _worst(curves.unseen[:, pruned], curves.tested)
    return PruningRow(
        pruned=pruned,
        kept=size - pruned,
        coverage=float(curves.coverage[pruned]),
        fitted=float(curves.fitted[pruned]),
        by_chance=1 - pruned / size,
        gate_weight=None if curves.weight is None else float(curves.weight[pruned]),
        worst_domain=domains[worst],
        worst_coverage=float(curves.by_domain[worst, pruned]),
        unseen_domain=None if unseen is None else domains[unseen],
        unseen_coverage=None
        if unseen is None or curves.unseen is None
        else float(curves.unseen[unseen, pruned]),
        pooled=float(curves.pooled[pruned * layers]),
        bytes_saved=None if each is None else each * pruned * layers,
    )


def _safe(curves: _Curves, most: int) -> int:
    """The most experts of a layer that can go with SAFE kept in every domain."""
    worst = curves.by_domain[curves.tested].min(axis=0)[: most + 1]
    return int(np.flatnonzero(worst >= SAFE)[-1])  # that of no expert pruned is 1


def _worst(coverage: NDArray[np.float64], tested: NDArray[np.bool_]) -> int:
    return int(np.argmin(np.where(tested, coverage, np.inf)))


def _unseen(fit: NDArray[np.int64], test: NDArray[np.int64], top_k: int) -> NDArray[np.float64]:
    """[domains, experts + 1] coverage of each domain by a choice fitted to all the others."""
    every = fit.sum(axis=0)
    return np.stack(
        [
            coverage_by_pruned(mine, order_experts(every - seen, top_k).by_layer)
            for seen, mine in zip(fit, test, strict=True)
        ]
    )


def _pooled(load: NDArray[np.int64], order: NDArray[np.intp]) -> NDArray[np.float64]:
    """[experts that can go in all + 1] share kept, mean over layers."""
    gone = np.cumsum(_shares(load).ravel()[order]) / len(load)
    return 1 - np.concatenate([[0.0], gone])


def _shares(load: NDArray[np.floating] | NDArray[np.int64]) -> NDArray[np.float64]:
    """`load` over its sum by layer."""
    shares: NDArray[np.float64] = load / np.maximum(load.sum(axis=-1, keepdims=True), 1e-12)
    return shares
