"""Distinct experts of a step that takes one token of each of B requests.

With q_r(e) the share of request r's tokens that use expert e, and R requests:
B <= R: sum_e 1 - mean over sets of B requests of prod_(r in set) (1 - q_r(e)), over every order of
the requests where those are few, else over as many orders drawn with a seed;
B > R: sum_e 1 - (1 - mean_r q_r(e))^B, requests drawn with replacement, which is all that so small
a recording can say.
"""

from __future__ import annotations

from itertools import permutations
from math import factorial

import numpy as np
from numpy.typing import NDArray

BATCHES = tuple(2**n for n in range(13))  # 1 to 4096 tokens a step
_ORDERS = 120  # 5!: with five requests or fewer the mean over sets is exact
_CELLS = 2_000_000  # of the matrix of sets, so that many requests take no more time
_EXACT_CELLS = 200_000  # up to which doubles cost next to nothing
_LEAST = 1e-30  # stands for 0 under the logarithm


def drawn_sets(requests: int, seed: int) -> NDArray[np.floating]:
    """[orders, sizes, requests] 1 where a request is among the first B of an order, B <= requests.

    The sizes are the BATCHES that there are requests for.
    """
    sizes = np.array([size for size in BATCHES if size <= requests])
    rng = np.random.default_rng(seed)
    few = factorial(min(requests, 6)) <= _ORDERS
    count = max(1, min(_ORDERS, _CELLS // (len(sizes) * requests)))
    orders = (
        np.array(list(permutations(range(requests))))
        if few
        else np.stack([rng.permutation(requests) for _ in range(count)])
    )
    ranks = np.argsort(orders, axis=1)  # [orders, requests] place of each request
    members = ranks[:, None, :] < sizes[:, None]
    return members.astype(np.float32 if members.size > _EXACT_CELLS else np.float64)


def distinct_by_size(share: NDArray[np.float64], sets: NDArray[np.floating]) -> NDArray[np.float64]:
    """[sizes] mean distinct experts of the `sets` of requests; `share` [requests, experts]."""
    logs = np.log(np.maximum(1 - share, _LEAST)).astype(sets.dtype)
    orders, sizes, requests = sets.shape
    missed = np.exp(sets.reshape(-1, requests) @ logs).reshape(orders, sizes, -1)
    distinct: NDArray[np.float64] = (1 - missed.astype(np.float64)).sum(axis=2).mean(axis=0)
    return distinct


def distinct_independent(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., BATCHES] sum over e of 1 - (1 - p_e)^B for p = `share` [..., experts]: exact."""
    missed = 1 - share
    sizes = []
    for _ in BATCHES:
        sizes.append((1 - missed).sum(axis=-1))
        missed = missed**2
    return np.stack(sizes, axis=-1)
