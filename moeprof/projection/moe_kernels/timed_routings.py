"""The routings that the kernel tables were timed with, drawn anew.

The tables name a routing only: `balanced`, or a power law. Which experts a rank read, and for how
many rows, follows from how aiconfigurator's collector draws one (collector/helper.py at 095f58a,
Apache-2.0; the rule below is from reading it, the code is our own):

1. A weight for each expert by the inverse CDF of a power law on [1, 0.8 tokens], or on [0.01, 2]
   where there are no more pairs than experts; weights become whole counts that sum to the pairs.
2. No expert has more rows than there are tokens; what rounding and this limit leave over goes, or
   comes, one row at a time and a rank after the other, to its emptiest, or from its fullest expert.
3. Ranks hold consecutive experts; the one with most rows becomes rank 0, and that one is timed.

Balanced tokens take experts at a stride of experts/top_k, one further each token.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError

Counts = NDArray[np.int64]
_PREFIX = "power_law_"
_LARGEST = 0.8  # of the tokens: the power law's upper end
_SPARSE = (0.01, 2.0)  # its ends where pairs are no more than experts


class RankDraw(NamedTuple):
    """Means over draws: experts with a row on the timed rank, its rows, those of its fullest."""

    distinct: float
    load: float
    busiest: float


def draw_timed_rank(
    routing: str, tokens: int, ep: int, *, experts: int = 128, top_k: int = 4, draws: int = 200
) -> RankDraw:
    """What the rank that the collector times has to do, on average; the same at each call.

    Raises InputError on a routing that is not `balanced` or `power_law_EXPONENT`.
    """
    if tokens < 1 or ep < 1 or experts % ep:
        raise InputError(f"{tokens} tokens on {ep} ranks: at least 1, and ranks divide {experts}")
    if routing == "balanced":
        loads = balanced_counts(tokens, experts, top_k)[None]
    else:
        exponent = _exponent(routing)
        random = np.random.default_rng([tokens, ep])
        loads = np.stack(
            [power_law_counts(random, exponent, tokens, ep, experts, top_k) for _ in range(draws)]
        )
    rank = loads[:, : experts // ep]
    return RankDraw(
        distinct=float((rank > 0).sum(1).mean()),
        load=float(rank.sum(1).mean()),
        busiest=float(rank.max(1).mean()),
    )


def balanced_counts(tokens: int, experts: int, top_k: int) -> Counts:
    """Rows [experts] where choices are spread as evenly as they can be."""
    stride = -(-experts // top_k)
    first = np.arange(tokens)[:, None] * (1.0 if tokens >= stride else stride / tokens)
    chosen = (first + np.arange(top_k) * stride) % experts
    counts: Counts = np.bincount(chosen.astype(np.int64).ravel(), minlength=experts)
    return counts


def power_law_counts(
    random: np.random.Generator, exponent: float, tokens: int, ep: int, experts: int, top_k: int
) -> Counts:
    """Rows [experts] of one draw, the rank with most rows first."""
    pairs = tokens * top_k
    low, high = (1.0, _LARGEST * tokens) if pairs > experts else _SPARSE
    power = 1 - exponent
    chance = random.random(experts)
    weights = ((high**power - low**power) * chance + low**power) ** (1 / power)
    counts: Counts = np.rint(weights / weights.sum() * pairs).astype(np.int64).reshape(ep, -1)
    over = int(np.maximum(counts - tokens, 0).sum())
    counts[counts > tokens] = tokens
    _give(counts, over, tokens)
    _give(counts, pairs - int(counts.sum()), tokens)
    heaviest = counts.sum(1).argmax()
    counts[[0, heaviest]] = counts[[heaviest, 0]]
    return counts.ravel()


def _give(counts: Counts, rows: int, most: int) -> None:
    """Add `rows` to `counts` [ranks, experts], or take them away, a rank after the other."""
    rank, step = 0, 1 if rows > 0 else -1
    while rows:
        row = counts[rank % len(counts)]
        expert = row.argmin() if step > 0 else row.argmax()
        if row[expert] < most if step > 0 else row[expert] > 0:
            row[expert] += step
            rows -= step
        rank += 1


def _exponent(routing: str) -> float:
    try:
        exponent = float(routing.removeprefix(_PREFIX))
    except ValueError:
        exponent = 1.0
    if not routing.startswith(_PREFIX) or exponent in (0.0, 1.0):
        raise InputError(f"no timed routing '{routing}': balanced, or power_law_1.01 (not 1 or 0)")
    return exponent
