"""From figures by draw to differences: effect, interval, and p among all that were tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.comparison.draws import Draws
from moeprof.analysis.comparison.results import Difference, Divergence, LayerDivergence
from moeprof.analysis.uncertainty import (
    benjamini_hochberg,
    interval_of,
    permutation_p,
    permutation_ps,
)

SIGNIFICANT = 0.05  # of the false discovery rate
ROUNDING = 1e-5  # sums are in single precision: what is equal may differ by this share


def make_difference(
    metric: str,
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    draws: Draws,
    layer: int | None = None,
) -> Difference | None:
    """The difference of `a` and `b` [draws]; None where either recording does not tell."""
    if np.isnan(a[0]) or np.isnan(b[0]):
        return None
    effect = b - a
    resampled = effect[draws.resampled]
    interval = interval_of(resampled, effect[0], kind="basic") if len(resampled) else None
    return Difference(
        metric=metric,
        a=float(a[0]),
        b=float(b[0]),
        effect=float(effect[0]),
        relative=float(effect[0] / a[0]) if a[0] else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        p=_two_sided(effect, abs(float(a[0])), draws),
        q=None,
        significant=False,
        layer=layer,
    )


def _two_sided(effect: NDArray[np.float64], size: float, draws: Draws) -> float | None:
    """p of an effect as far from what is expected where A and B are of one kind; `size` is A's.

    The permutations say what that is; where requests cannot change sides, the spread of the
    resamples does, around no effect.
    """
    permuted, resampled = effect[draws.permuted], effect[draws.resampled]
    if len(resampled) and abs(effect[0]) <= ROUNDING * size:
        return 1.0  # no effect: it is not further from none than any other
    if len(permuted):
        centre, null = permuted.mean(), permuted
    elif len(resampled):
        centre, null = 0.0, resampled - resampled.mean()
    else:
        return None
    reach = abs(effect[0] - centre) - ROUNDING * (size + abs(effect[0]))
    return permutation_p(reach, np.abs(null - centre))


def judge_together(found: Sequence[Difference | None]) -> list[Difference]:
    """The differences that there are, with q-values over all of them."""
    known = [difference for difference in found if difference]
    p = [np.nan if difference.p is None else difference.p for difference in known]
    return [
        replace(difference, q=_known(q), significant=bool(q <= SIGNIFICANT) and _sure(difference))
        for difference, q in zip(known, benjamini_hochberg(p), strict=True)
    ]


def _sure(difference: Difference) -> bool:
    """True where the interval leaves out no effect: a permutation also sees that A and B differ in
    something else."""
    low, high = difference.low, difference.high
    return low is not None and high is not None and (low > 0 or high < 0)


def judge_divergence(
    layers: Sequence[int], by_layer: NDArray[np.float64], draws: Draws
) -> Divergence:
    """The divergence `by_layer` [layers, draws] beside its permutations."""
    mean, null = by_layer.mean(axis=0), by_layer[:, draws.permuted]
    tested = null.shape[1] > 0
    untested = np.full(len(layers), np.nan)
    p = permutation_ps(by_layer[:, 0] * (1 - ROUNDING), null.T) if tested else untested
    overall = permutation_p(mean[0] * (1 - ROUNDING), mean[draws.permuted]) if tested else None
    expected = null.mean(axis=1) if tested else np.zeros(len(layers))
    return Divergence(
        value=float(mean[0]),
        null=float(expected.mean()),
        p=overall,
        significant=overall is not None and overall <= SIGNIFICANT,
        per_layer=[
            LayerDivergence(layer, float(value), float(chance), _known(q), bool(q <= SIGNIFICANT))
            for layer, value, chance, q in zip(
                layers, by_layer[:, 0], expected, benjamini_hochberg(p), strict=True
            )
        ],
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
