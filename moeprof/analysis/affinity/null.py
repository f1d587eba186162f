"""Chance: how often two experts meet where each keeps its load and each token its k experts.

Of all ways to give T tokens k distinct experts each, expert a to n_a of them, all alike: random
bipartite graphs of given degrees. For many tokens that is tokens which choose by themselves, a set
S with probability proportional to prod_(a in S) x_a, the odds x such that P(a in S) = n_a / T: the
conditional Poisson design of sampling (Chen, Dempster, Liu 1994, doi:10.1093/biomet/81.3.457).
With e_j the elementary symmetric polynomials of the odds, those of some experts left out,

    P(a in S) = x_a e_(k-1)(x without a) / e_k(x)
    P(a and b in S) = x_a x_b e_(k-2)(x without a and b) / e_k(x)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.affinity.counting import Ids

_ROUNDS = 100
_REPAIRS = 500
_CLOSE = 1e-7


def choice_odds(load: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """[layers, experts] odds under which experts have `load` [layers, experts], k a token."""
    tokens = np.maximum(load.sum(axis=1, keepdims=True) / k, 1)
    share = np.minimum(load / tokens, 1 - 0.5 / tokens)  # used by every token: nearly
    share *= k / np.maximum(share.sum(axis=1, keepdims=True), 1e-300)
    share = np.minimum(share, 1 - 1e-9)
    wanted = share / (1 - share)
    odds: NDArray[np.float64] = wanted.copy()
    for _ in range(_ROUNDS):
        chance = np.minimum(_chances(odds, k), 1 - 1e-12)
        if np.abs(chance - share).max(initial=0) < _CLOSE:
            break
        given = chance / (1 - chance)
        odds *= np.divide(wanted, given, out=np.ones_like(odds), where=given > 0)
    return odds


def pair_chances(odds: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """[experts, experts] chance that a token uses both; 0 on the diagonal. `odds` [experts]."""
    others = np.tile(odds, (len(odds), 1))
    np.fill_diagonal(others, 0)
    pairs: NDArray[np.float64] = np.outer(odds, odds) * _left_out(others, k - 2)
    np.fill_diagonal(pairs, 0)
    pairs *= k * (k - 1) / max(float(pairs.sum()), 1e-300)
    return (pairs + pairs.T) / 2


def variance_share(share: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """[experts, experts] variance of a pair's tokens over their expected number.

    (1 - q_a) (1 - q_b) E^2 (E - k - 1) / ((E - k) (E - 1) (E - 2)), `share` q_a = n_a / T: below
    one, for loads are fixed. Exact for even loads, where it is what degrees leave of the variance
    of a pair in the Johnson scheme J(E, k): (E - k) (E - k - 1) / ((E - 1) (E - 2)).
    """
    size = len(share)
    left = size**2 * (size - k - 1) / ((size - k) * (size - 1) * (size - 2))
    result: NDArray[np.float64] = left * np.outer(1 - share, 1 - share)
    return result


def dealt_anew(ids: Ids, rng: np.random.Generator) -> Ids:
    """[tokens, k] the same experts dealt to tokens by chance: every load kept, k distinct a token.

    All are shuffled over all places. A token that got an expert twice then trades it against one
    of another token, where both come out distinct, until none is left.
    """
    dealt = rng.permutation(ids.ravel()).reshape(ids.shape)
    ordered = np.sort(dealt, axis=1)
    wrong = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    for _ in range(_REPAIRS):
        if not len(wrong):
            break
        _trade(dealt, wrong, rng)
        wrong = wrong[_repeated(dealt[wrong]).any(axis=1)]
    return dealt


def _trade(dealt: Ids, wrong: NDArray[np.intp], rng: np.random.Generator) -> None:
    """One repeated expert of each `wrong` token against one of a token drawn, where that helps."""
    wrong = wrong[rng.permutation(len(wrong))[: len(dealt) // 2]]
    others = rng.choice(len(dealt), len(wrong), replace=False)
    apart = ~np.isin(others, wrong)
    wrong, others = wrong[apart], others[apart]
    slot = _repeated(dealt[wrong]).argmax(axis=1)
    place = rng.integers(0, dealt.shape[1], len(wrong))
    given, taken = dealt[wrong, slot], dealt[others, place]
    fits = (dealt[others] != given[:, None]).all(axis=1)
    fits &= (dealt[wrong] != taken[:, None]).all(axis=1)
    dealt[wrong[fits], slot[fits]] = taken[fits]
    dealt[others[fits], place[fits]] = given[fits]


def _repeated(ids: Ids) -> NDArray[np.bool_]:
    """[tokens, k] where a token's expert came before in the same token."""
    k = ids.shape[1]
    earlier = np.tril(np.ones((k, k), bool), -1)
    repeated: NDArray[np.bool_] = ((ids[:, :, None] == ids[:, None, :]) & earlier).any(axis=2)
    return repeated


def _chances(odds: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """[layers, experts] chance of each expert to be one of the k."""
    weight = odds * _left_out(odds, k - 1)
    result: NDArray[np.float64] = k * weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
    return result


def _left_out(odds: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    """[rows, experts] e_degree of each row of `odds` without the one expert.

    From the polynomials of what stands before it and after it: sums of positive terms alone.
    """
    before, after = _prefixes(odds, degree), _prefixes(odds[:, ::-1], degree)
    count = odds.shape[1]
    left = np.zeros((count, len(odds)))
    for part in range(degree + 1):
        left += before[:count, part] * after[count - 1 :: -1, degree - part]
    return left.T


def _prefixes(odds: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    """[experts + 1, degree + 1, rows] elementary symmetric polynomials of the first experts."""
    rows, count = odds.shape
    sums = np.zeros((count + 1, degree + 1, rows))
    sums[0, 0] = 1
    columns = np.ascontiguousarray(odds.T)
    for expert in range(count):
        sums[expert + 1] = sums[expert]
        sums[expert + 1, 1:] += columns[expert] * sums[expert, :-1]
    return sums
