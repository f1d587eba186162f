"""What chance alone makes of an even router: the busiest of many equal experts is not the mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 200


def even_router_imbalance(assignments: int, experts: int, *, seed: int = 0) -> float:
    """Mean imbalance, max over mean, of `assignments` spread evenly at random over `experts`.

    A recording, or a window of one, shows at least this much however good its router is. Drawn
    with a fixed seed: same arguments, same number. 1 where there is nothing to spread.
    """
    if assignments < 1 or experts < 1:
        return 1.0
    rng = np.random.default_rng(seed)
    loads = rng.multinomial(assignments, np.full(experts, 1 / experts), size=DRAWS)
    return float(loads.max(axis=1).mean() * experts / assignments)


def even_router_distinct(experts: int, top_k: int, tokens: ArrayLike) -> NDArray[np.float64]:
    """Mean distinct experts of tokens that are routed independently and evenly: the null.

    Exact: E (1 - (1 - k/E)^T), since a token leaves an expert out with probability 1 - k/E.
    """
    given = np.asarray(tokens, np.float64)
    distinct: NDArray[np.float64] = experts * (1 - (1 - top_k / experts) ** given)
    return distinct
