"""How much the experts that are used depend on the domain, beside chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def _entropy(share: Floats) -> Floats:
    """Entropy in bits over the last axis."""
    safe = np.where(share > 0, share, 1.0)
    entropy: Floats = -(share * np.log2(safe)).sum(axis=-1)
    return entropy


def divergence(counts: Floats, labels: Ints, domains: int) -> Floats:
    """Generalized Jensen-Shannon divergence between domains, in bits, for each layer.

    `counts` is [documents, layers, experts]. Every domain has the same weight: the divergence
    is the entropy of the mean distribution less the mean of the domains' entropies.
    """
    pooled = np.stack([counts[labels == domain].sum(axis=0) for domain in range(domains)])
    share = pooled / pooled.sum(axis=-1, keepdims=True)
    result: Floats = _entropy(share.mean(axis=0)) - _entropy(share).mean(axis=0)
    return result


def null(counts: Floats, labels: Ints, domains: int, times: int, seed: int) -> Floats:
    """The mean divergence over layers under `times` random permutations of the labels."""
    generator = np.random.default_rng(seed)
    return np.array(
        [divergence(counts, generator.permutation(labels), domains).mean() for _ in range(times)]
    )
