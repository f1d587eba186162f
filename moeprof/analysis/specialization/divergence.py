"""The generalized Jensen-Shannon divergence between groups' expert distributions, in bits.

H(mean_d p_d) - mean_d H(p_d), groups weighted equally (Lin 1991, doi:10.1109/18.61115): 0 where all
are alike, log2 of the groups where none shares an expert. Noise alone makes it larger than 0, so
nothing here is shown without what shuffled groups give.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.evenness import entropy_bits


def divergence(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """[...] divergence between the distributions of `share` [..., groups, experts]."""
    mixed, each = entropy_bits(share.mean(axis=-2)), entropy_bits(share)
    apart: NDArray[np.float64] = mixed - each.mean(axis=-1)
    return apart


def pair_divergence(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., groups, groups] divergence between each two of `share` [..., groups, experts]."""
    each = entropy_bits(share)
    mixed = entropy_bits((share[..., :, None, :] + share[..., None, :, :]) / 2)
    apart: NDArray[np.float64] = mixed - (each[..., :, None] + each[..., None, :]) / 2
    return apart.clip(min=0)  # rounding leaves -1e-17 on the diagonal


def shares(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """`counts` [..., experts] over their sum; zeros where there are none."""
    share: NDArray[np.float64] = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1e-300)
    return share


def domain_divergence(
    counts: NDArray[np.int64] | NDArray[np.float64], domain: NDArray[np.intp], domains: int
) -> NDArray[np.float64]:
    """[layers] divergence between the domains' expert distributions.

    `counts` [requests, layers, experts] are assignments, `domain` [requests] is below `domains`.
    """
    members = np.eye(domains)[domain]  # a product of matrices: np.add.at takes 50 times as long
    totals = (members.T @ counts.reshape(len(counts), -1)).reshape(domains, *counts.shape[1:])
    return divergence(shares(np.moveaxis(totals, 0, 1)))


def shuffled_divergence(
    counts: NDArray[np.int64] | NDArray[np.float64],
    domain: NDArray[np.intp],
    domains: int,
    *,
    shuffles: int,
    seed: int,
) -> NDArray[np.float64]:
    """[shuffles] mean divergence over layers with `domain` permuted over the requests."""
    counts = counts.astype(np.float64)  # once for all shuffles
    orders = shuffled(domain, shuffles, seed)
    return np.array([domain_divergence(counts, order, domains).mean() for order in orders])


def shuffled(domain: NDArray[np.intp], shuffles: int, seed: int) -> NDArray[np.intp]:
    """[shuffles, requests] `domain` [requests] in random orders."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(domain) for _ in range(shuffles)])
