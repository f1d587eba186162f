"""Dead and hot experts: those that a recording is long enough to call so.

Tokens of one request are alike, so a recording of N tokens says as much as N / d independent ones.
d is how much the requests' shares of a layer's experts vary beyond binomial: the sum over experts
of sum_r (n_re - p_e n_r)^2 over that of N p_e (1 - p_e), at least 1, n_r the tokens of request r,
n_re those that use e, p_e = sum_r n_re / N (Kish's design effect, with requests as clusters).
Dead: not used once, where a token of an even router would use it with k / E, and
E L (1 - k / E)^(N / d) <= LEVEL: the chance that any expert of any of the L layers is called dead
by bad luck is LEVEL at most (Bonferroni).
Hot: used more than HOT times its even share k / E. z = (p_e - HOT k / E) / s_e with s_e^2 =
sum_r (n_re - p_e n_r)^2 / N^2; the q-values of its one-sided p over all experts and layers are
LEVEL_HOT at most: of the experts called hot, that share is expected to be so by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.uncertainty import benjamini_hochberg
from moeprof.result import Result

LEVEL = 0.01
LEVEL_HOT = 0.05
HOT = 2.0


@dataclass(frozen=True)
class ExpertLoad(Result):
    """One expert that stands out."""

    layer: int
    expert: int
    over_even: float  # its load over the layer's mean


@dataclass(frozen=True)
class OutlyingExperts(Result):
    """Experts without use, and experts that are used far too much."""

    dead: list[ExpertLoad]
    hot: list[ExpertLoad]  # the hottest first
    unused: int  # without an assignment, dead or not seen for long enough to tell
    design_effect: float  # mean over layers: so many tokens say as much as an independent one
    hot_above: float = HOT  # times the mean load
    dead_error: float = LEVEL  # chance of any false one
    hot_error: float = LEVEL_HOT  # expected share of false ones


class Spread(NamedTuple):
    """What the requests' loads of one layer come to."""

    share: NDArray[np.float64]  # [experts] of the tokens that use each
    variance: NDArray[np.float64]  # [experts] of that share, between requests
    tokens: float
    design_effect: float


def request_spread(uses: NDArray[np.int64], top_k: int) -> Spread:
    """The spread of a layer's `uses` [requests, experts] between requests."""
    tokens = uses.sum(axis=1) / top_k
    total = max(float(tokens.sum()), 1.0)
    share = uses.sum(axis=0) / total
    squares = ((uses - tokens[:, None] * share) ** 2).sum(axis=0)
    independent = total * float((share * (1 - share)).sum())
    effect = float(squares.sum()) / independent if independent > 0 else 1.0
    return Spread(share, squares / total**2, total, max(effect, 1.0))


def outlying_experts(layers: Sequence[int], spreads: list[Spread], top_k: int) -> OutlyingExperts:
    """The dead and the hot of all `layers`."""
    from scipy.stats import norm

    share = np.stack([spread.share for spread in spreads])
    error = np.sqrt(np.stack([spread.variance for spread in spreads]))
    even = top_k / share.shape[1]
    z = (share - HOT * even) / np.where(error > 0, error, np.inf)
    hot = (share > HOT * even) & (benjamini_hochberg(norm.sf(z)) <= LEVEL_HOT)
    seen = np.array([spread.tokens / spread.design_effect for spread in spreads])
    chance = share.size * (1 - even) ** seen if even < 1 else np.zeros(len(layers))
    dead = (share == 0) & (chance <= LEVEL)[:, None]
    return OutlyingExperts(
        dead=_named(dead, layers, share / even),
        hot=sorted(_named(hot, layers, share / even), key=lambda found: -found.over_even),
        unused=int((share == 0).sum()),
        design_effect=float(np.mean([spread.design_effect for spread in spreads])),
    )


def _named(
    chosen: NDArray[np.bool_], layers: Sequence[int], over: NDArray[np.float64]
) -> list[ExpertLoad]:
    return [
        ExpertLoad(layers[row], int(expert), float(over[row, expert]))
        for row, expert in zip(*np.nonzero(chosen), strict=True)
    ]
