"""Co-activation: pairs of experts of a layer that tokens use together, against chance.

With n_ab the tokens that use both a and b, and m_ab what chance gives (null.py):
lift = n_ab / m_ab, z = (n_ab - m_ab) / sqrt(m_ab s_ab d),
s_ab the variance that fixed loads leave (null.py), d the dispersion: how much more blocks of
requests differ than independent tokens would, pooled over pairs (McCullagh and Nelder 1989,
Generalized Linear Models, section 4.5), at least 1. p-values are those of a Poisson variable
stretched to that variance, both sides.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.affinity.communities import (
    Communities,
    adjusted_rand,
    find_communities,
    strongest_edges,
)
from moeprof.analysis.affinity.counting import Ids, count_by_request, count_together
from moeprof.analysis.affinity.null import (
    choice_odds,
    dealt_anew,
    pair_chances,
    variance_share,
)
from moeprof.analysis.affinity.result import ExpertPair, LayerAffinity
from moeprof.analysis.uncertainty import benjamini_hochberg

SIGNIFICANT = 0.05
SHOWN = 3  # pairs a layer
_95 = 1.96


class Blocks(NamedTuple):
    """Counts of one layer by block of requests; pairs in the order of `triu_indices`."""

    together: NDArray[np.float64]  # [blocks, pairs] tokens
    load: NDArray[np.float64]  # [blocks, experts]
    tokens: NDArray[np.float64]  # [blocks]


class Pairs(NamedTuple):
    """[pairs] of one layer."""

    together: NDArray[np.float64]
    expected: NDArray[np.float64]
    lift: NDArray[np.float64]  # 0 where none is expected
    variance: NDArray[np.float64]  # of `together` by chance, tokens independent
    z: NDArray[np.float64]


def count_blocks(ids: Ids, block: NDArray[np.int64], blocks: int, size: int) -> Blocks:
    """`ids` [tokens, k] in order of `block` [tokens]."""
    ends = np.searchsorted(block, np.arange(blocks + 1))
    pairs = np.triu_indices(size, 1)
    together = np.zeros((blocks, len(pairs[0])))
    load = np.zeros((blocks, size))
    for number in range(blocks):
        counts = count_together(ids[ends[number] : ends[number + 1]], size)
        together[number], load[number] = counts[pairs], np.diag(counts)
    return Blocks(together, load, np.diff(ends).astype(np.float64))


def compare_to_chance(blocks: Blocks, k: int) -> Pairs:
    """All blocks together against chance at their loads, k experts a token."""
    load, tokens = blocks.load.sum(axis=0), max(blocks.tokens.sum(), 1)
    upper = np.triu_indices(len(load), 1)
    odds = choice_odds(load.astype(np.int64)[None], k)[0]
    expected = tokens * pair_chances(odds, k)[upper]
    variance = expected * variance_share(load / tokens, k)[upper]
    return _against(blocks.together.sum(axis=0), expected, variance)


def _against(
    together: NDArray[np.float64], expected: NDArray[np.float64], variance: NDArray[np.float64]
) -> Pairs:
    z = _ratio(together - expected, np.sqrt(variance))
    return Pairs(together, expected, _ratio(together, expected), variance, z)


def describe_pairs(
    layer: int,
    ids: Ids,
    request: NDArray[np.int64],
    block: NDArray[np.int64],
    blocks: Blocks,
    seed: int,
    judged: bool,
) -> LayerAffinity:
    """Everything about the pairs of one layer; `ids` [tokens, k] of `request` and
    `block` [tokens].

    What takes longest, communities beside chance and what requests explain, only if `judged`.
    """
    size, k = blocks.load.shape[1], ids.shape[1]
    pairs = compare_to_chance(blocks, k)
    spread = dispersion(blocks, pairs)
    q = benjamini_hochberg(two_sided(pairs, spread))
    clear = q < SIGNIFICANT
    halves = _halves(blocks, pairs)
    groups = _communities(pairs, size, seed)
    null = _dealt_pairs(ids, pairs, size, np.random.default_rng([seed, layer])) if judged else None
    return LayerAffinity(
        layer=layer,
        tokens=len(ids),
        more_often=int((clear & (pairs.z > 0)).sum()),
        less_often=int((clear & (pairs.z < 0)).sum()),
        pairs=len(q),
        dispersion=spread,
        from_requests=_from_requests(ids, request, block, halves, size) if judged else None,
        split_half_correlation=_correlation(halves),
        top_pairs_kept=_kept(halves, size),
        modularity=groups.modularity,
        modularity_null=None if null is None else _communities(null, size, seed).modularity,
        communities=int(groups.member.max()) + 1,
        community_stability=_stability(halves, size, seed) if judged else None,
        community=groups.member.tolist(),
        strongest=_strongest(layer, size, pairs, spread, q, halves),
    )


def _halves(blocks: Blocks, pairs: Pairs) -> list[Pairs]:
    """The pairs in the even blocks and in the odd ones, against chance at the half's own loads.

    That k experts are distinct takes the same share of n_a n_b / T in a half as in the layer.
    """
    parts = [Blocks(*(counts[part::2].sum(axis=0) for counts in blocks)) for part in (0, 1)]
    apart = _ratio(pairs.expected, _alone(blocks.load.sum(axis=0), blocks.tokens.sum()))
    left = _ratio(pairs.variance, pairs.expected)
    expected = [_alone(part.load, part.tokens) * apart for part in parts]
    return [
        _against(part.together, mean, mean * left)
        for part, mean in zip(parts, expected, strict=True)
    ]


def _alone(load: NDArray[np.float64], tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """[pairs] n_a n_b / T."""
    first, second = np.triu_indices(len(load), 1)
    result: NDArray[np.float64] = load[first] * load[second] / max(float(tokens), 1)
    return result


def _ratio(of: NDArray[np.float64], to: NDArray[np.float64]) -> NDArray[np.float64]:
    """`of` / `to`, 0 where `to` is."""
    to = np.broadcast_to(to, of.shape)
    return np.divide(of, to, out=np.zeros_like(of), where=to > 0)


def dispersion(blocks: Blocks, pairs: Pairs) -> float:
    """How many times as much the blocks differ as independent tokens would, at least 1.

    A block moves the log of a pair's lift by e_g / n_ab, with w_g its share of the tokens and
    e_g = n_gab - n_ab (n_ga / n_a + n_gb / n_b - w_g), all g being of the block. Independent
    tokens give sum_g e_g^2 / w_g the mean n_ab s_ab (blocks - 1): the ratio over all pairs.
    """
    first, second = np.triu_indices(blocks.load.shape[1], 1)
    used = blocks.tokens > 0
    share = blocks.tokens[used, None] / max(blocks.tokens.sum(), 1)
    load = blocks.load[used] / np.maximum(blocks.load.sum(axis=0), 1) - share / 2
    off = blocks.together[used] - pairs.together * (load[:, first] + load[:, second])
    left = _ratio(pairs.variance, pairs.expected)
    statistic = _ratio((off**2 / share).sum(axis=0), left).sum()
    freedom = pairs.together[left > 0].sum() * (len(share) - 1)
    return max(1.0, float(statistic / freedom)) if freedom else 1.0


def two_sided(pairs: Pairs, spread: float) -> NDArray[np.float64]:
    """[pairs] chance of a count at least as far off, NaN where none is expected."""
    from scipy.special import gammainc, gammaincc

    tested = (pairs.expected > 0) & (pairs.variance > 0)
    p = np.full(len(pairs.expected), np.nan)
    expected = pairs.expected[tested]
    stretch = pairs.variance[tested] / expected * spread
    count, mean = pairs.together[tested] / stretch, expected / stretch
    above = np.where(count > 0, gammainc(np.maximum(count, 1e-9), mean), 1.0)
    p[tested] = np.minimum(1, 2 * np.minimum(above, gammaincc(count + 1, mean)))
    return p


def _dealt_pairs(ids: Ids, pairs: Pairs, size: int, rng: np.random.Generator) -> Pairs:
    """The pairs of the same loads, dealt to tokens by chance."""
    together = count_together(dealt_anew(ids, rng), size)[np.triu_indices(size, 1)]
    return _against(together.astype(np.float64), pairs.expected, pairs.variance)


def _from_requests(
    ids: Ids, request: NDArray[np.int64], block: NDArray[np.int64], halves: list[Pairs], size: int
) -> float | None:
    """Share of the excess that tokens which choose by the loads of their own request have too.

    Of as many strongest pairs of one half as there are experts, in the other half: there they owe
    nothing to having been chosen. None where that has no excess, or there is one request alone.
    """
    if not request.any():
        return None
    excess = explained = 0.0
    for part in (0, 1):
        chosen = np.argsort(-halves[1 - part].z, kind="stable")[:size]
        rows = block % 2 == part
        load = count_by_request(ids[rows], request[rows], int(request.max()) + 1, size)
        upper, k = np.triu_indices(size, 1), ids.shape[1]
        within = _approximate(load, k)[upper][chosen]
        whole = _approximate(load.sum(axis=0, keepdims=True), k)[upper][chosen]
        expected = halves[part].expected[chosen]
        excess += float((halves[part].together[chosen] - expected).sum())
        explained += float((expected * (_ratio(within, whole) - 1)).sum())
    return explained / excess if excess > 0 else None


def _approximate(load: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """[experts, experts] tokens that use both by chance, loads [requests, experts] kept in each.

    q_a q_b (1 - (1 - q_a) (1 - q_b) / sum_e q_e (1 - q_e)) of each request's tokens, q the shares
    of them: Hajek's approximation (1964, doi:10.1214/aoms/1177700375), two products of matrices.
    """
    tokens = np.maximum(load.sum(axis=1, keepdims=True) / k, 1)
    free = load * (1 - load / tokens)
    spread = free.sum(axis=1, keepdims=True)
    result: NDArray[np.float64] = load.T @ (load / tokens) - free.T @ _ratio(free, tokens * spread)
    return result


def _correlation(halves: list[Pairs]) -> float | None:
    one, other = (half.z for half in halves)
    there = (halves[0].expected > 0) & (halves[1].expected > 0)
    if there.sum() < 3 or not one[there].std() or not other[there].std():
        return None
    return float(np.corrcoef(one[there], other[there])[0, 1])


def _kept(halves: list[Pairs], size: int) -> float | None:
    """Of as many strongest pairs as there are experts, the share that both halves have."""
    if not all(half.expected.any() for half in halves):
        return None
    one, other = (set(np.argsort(-half.z, kind="stable")[:size].tolist()) for half in halves)
    return len(one & other) / len(one)


def kept_by_chance(size: int) -> float:
    """What `top_pairs_kept` would be were the halves' strongest pairs drawn."""
    return min(1.0, 2 / (size - 1))


def _stability(halves: list[Pairs], size: int, seed: int) -> float | None:
    if not all(half.expected.any() for half in halves):
        return None
    one, other = (_communities(half, size, seed) for half in halves)
    return adjusted_rand(one.member, other.member)


def _communities(pairs: Pairs, size: int, seed: int) -> Communities:
    return find_communities(strongest_edges(pairs.z, pairs.lift, size), size, seed)


def lower_lift(pairs: Pairs, spread: float) -> NDArray[np.float64]:
    """[pairs] lower end of lift, to put pairs in order: what is rare is not sure."""
    stretch = _ratio(pairs.variance, pairs.expected) * spread
    return _ratio(pairs.together - _95 * np.sqrt(pairs.together * stretch), pairs.expected)


def _strongest(
    layer: int,
    size: int,
    pairs: Pairs,
    spread: float,
    q: NDArray[np.float64],
    halves: list[Pairs],
) -> list[ExpertPair]:
    """Pairs that are clearly more often together, the largest lower end of lift first."""
    from scipy.special import gammaincinv

    low = np.where((q < SIGNIFICANT) & (pairs.z > 0), lower_lift(pairs, spread), -np.inf)
    first, second = np.triu_indices(size, 1)
    shown = []
    for at in np.argsort(-low, kind="stable")[:SHOWN]:
        if np.isinf(low[at]):
            break
        stretch = pairs.variance[at] / pairs.expected[at] * spread
        count = pairs.together[at] / stretch
        ends = gammaincinv([count, count + 1], [0.025, 0.975]) * stretch / pairs.expected[at]
        by_half = [float(half.lift[at]) if half.expected[at] > 0 else None for half in halves]
        shown.append(
            ExpertPair(
                layer=layer,
                experts=(int(first[at]), int(second[at])),
                together=int(pairs.together[at]),
                expected=float(pairs.expected[at]),
                lift=float(pairs.lift[at]),
                lift_low=float(ends[0]),
                lift_high=float(ends[1]),
                z=float(pairs.z[at] / np.sqrt(spread)),
                q=float(q[at]),
                lift_by_half=(by_half[0], by_half[1]),
            )
        )
    return shown
