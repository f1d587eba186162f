"""The compiled inner loops of synthetic routing. Import this only where one is called."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

_WIDTH = 16  # weights summed together, so that a draw looks at E / 16 sums and 16 weights
_SCALE = 1.0 / (1 << 53)
_COINS = 1 << 11
_MOST = 1 - 1e-6  # share: an expert that every token uses
_STRIDE = 8  # tokens after which what experts are owed is added to their weights


@njit(cache=True, nogil=True, inline="always")
def _random(seed: np.uint64, counter: np.uint64) -> np.uint64:
    """The 64 bits that stand at `counter` in the sequence of `seed`.

    SplitMix64 (Steele, Lea, Flood 2014, doi:10.1145/2714064.2660195), entered anywhere.
    """
    mixed = seed + counter * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@njit(cache=True, nogil=True, inline="always")
def _height(counter: int, common: np.uint64, seed: np.uint64, common_seed: np.uint64) -> float:
    """Where a slot draws in [0, 1): in `common` of _COINS cases, where it does in every layer.

    The high 53 bits are the number, the low ones, which it does not hold, the coin.
    """
    bits = _random(seed, np.uint64(counter))
    if (bits & np.uint64(_COINS - 1)) < common:
        bits = _random(common_seed, np.uint64(counter))
    height: float = np.float64(bits >> np.uint64(11)) * _SCALE
    return height


@njit(cache=True, nogil=True, inline="always")
def _weigh(
    level: NDArray[np.float64],
    gain: NDArray[np.float64],
    rank: NDArray[np.unsignedinteger],
    weights: NDArray[np.float64],
    sums: NDArray[np.float64],
) -> float:
    """One token's weights: `level` times the gain of each expert's recency.

    Fills `weights` [sums x _WIDTH] and `sums`, and returns the total.
    """
    for expert in range(level.shape[0]):
        weights[expert] = level[expert] * gain[rank[expert]]
    total = 0.0
    for block in range(sums.shape[0]):
        sums[block] = _block_sum(block, weights)
        total += sums[block]
    return total


@njit(cache=True, nogil=True, inline="always")
def _block_sum(block: int, weights: NDArray[np.float64]) -> float:
    """The sum of one block, in four chains: one would wait for each addition."""
    a = b = c = d = 0.0
    for i in range(block * _WIDTH, (block + 1) * _WIDTH, 4):
        a += weights[i]
        b += weights[i + 1]
        c += weights[i + 2]
        d += weights[i + 3]
    return (a + b) + (c + d)


@njit(cache=True, nogil=True, inline="always")
def _draw(level: float, weights: NDArray[np.float64], sums: NDArray[np.float64]) -> int:
    """The expert at `level`, a height in the sum of all weights, in order of id.

    Counted without branches, which a random level would make the processor guess in vain.
    """
    reached = below = 0.0
    block: int = 0
    for i in range(sums.shape[0]):
        reached += sums[i]
        passed = level >= reached
        block += passed
        below = reached if passed else below
    if block == sums.shape[0]:
        block -= 1
    start = block * _WIDTH
    expert: int = start
    for i in range(start, start + _WIDTH):
        below += weights[i]
        expert += level >= below
    if expert == start + _WIDTH or weights[expert] == 0.0:
        expert = _last(weights)
    return expert


@njit(cache=True, nogil=True)
def _last(weights: NDArray[np.float64]) -> int:
    """The last expert with a weight: where rounding puts a draw above all of them."""
    expert: int = weights.shape[0] - 1
    while expert > 0 and not weights[expert] > 0.0:
        expert -= 1
    return expert


@njit(cache=True, nogil=True, inline="always")
def _remove(expert: int, weights: NDArray[np.float64], sums: NDArray[np.float64]) -> float:
    """Take `expert` out of the draw; returns what is then less.

    Its block is summed afresh: a difference of sums would not be exact where it was most of them.
    """
    block = expert // _WIDTH
    before = sums[block]
    weights[expert] = 0.0
    sums[block] = _block_sum(block, weights)
    less: float = before - sums[block]
    return less


@njit(cache=True, nogil=True, inline="always")
def _use(ids: NDArray[np.unsignedinteger], rank: NDArray[np.unsignedinteger]) -> None:
    """Make the experts of a token the most recent ones, the last of them first."""
    for slot in range(ids.shape[0]):
        passed = rank[ids[slot]]
        for expert in range(rank.shape[0]):
            rank[expert] += rank[expert] < passed
        rank[ids[slot]] = 0


def new_ranks(experts: int) -> NDArray[np.unsignedinteger]:
    """Room for the ranks of `experts` experts, 0 to `experts`, in whole blocks; narrow is fast."""
    return np.zeros(-(-experts // _WIDTH) * _WIDTH, np.uint8 if experts < 256 else np.uint16)


@njit(cache=True, nogil=True)
def route_layer(
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    fresh: NDArray[np.bool_],
    profile: NDArray[np.int64],
    kind: NDArray[np.int64],
    share: NDArray[np.float64],
    gain: NDArray[np.float64],
    steering: float,
    common: float,
    seed: np.uint64,
    common_seed: np.uint64,
    rank: NDArray[np.unsignedinteger],
    out: NDArray[np.unsignedinteger],
) -> None:
    """Draw the experts of one layer into `out` [tokens, k].

    Span i is tokens rows[starts[i]:starts[i + 1]] in order of position, routed by the token
    shares share[profile[i]] [experts]; where `fresh`, a request begins and nothing is recent.
    An expert's weight is -ln(1 - share), which k draws without replacement turn into its share of
    tokens, or nearly; times gain[kind[i]] [experts + 1] of its recency rank (last: not used yet),
    times exp(steering x the tokens it is owed: its shares less its uses so far).
    `rank` is `new_ranks`.
    """
    experts = share.shape[1]
    k = out.shape[1]
    level, weights = np.zeros(len(rank)), np.zeros(len(rank))
    growth = np.ones(len(rank))
    sums = np.zeros(len(rank) // _WIDTH)
    owed = np.zeros(experts)
    paid = np.exp(-steering)
    coins = np.uint64(common * _COINS)
    for span in range(profile.shape[0]):
        wanted, gains = share[profile[span]], gain[kind[span]]
        if fresh[span]:
            rank[:] = experts
        growth[:experts] = np.exp(steering * _STRIDE * wanted)
        level[:experts] = -np.log1p(-np.minimum(wanted, _MOST)) * np.exp(steering * owed)
        owed += wanted * (starts[span + 1] - starts[span])
        for place in range(starts[span], starts[span + 1]):
            row = rows[place]
            if (place - starts[span]) % _STRIDE == _STRIDE - 1:
                level *= growth
            total = _weigh(level, gains, rank, weights, sums)
            for slot in range(k):
                height = _height(row * k + slot, coins, seed, common_seed)
                expert = _draw(height * total, weights, sums)
                out[row, slot] = expert
                total -= _remove(expert, weights, sums)
                level[expert] *= paid
                owed[expert] -= 1.0
            _use(out[row], rank)


@njit(cache=True, nogil=True)
def recency_histogram(
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    fresh: NDArray[np.bool_],
    kind: NDArray[np.int64],
    experts: NDArray[np.unsignedinteger],
    rank: NDArray[np.unsignedinteger],
    histogram: NDArray[np.int64],
) -> None:
    """Add to `histogram` [kinds, experts + 1] the recency ranks of the tokens' `experts`.

    Spans as in `route_layer`; the last entry counts an expert's first use in a request.
    """
    unused = histogram.shape[1] - 1
    for span in range(fresh.shape[0]):
        if fresh[span]:
            rank[:] = unused
        for place in range(starts[span], starts[span + 1]):
            ids = experts[rows[place]]
            for slot in range(ids.shape[0]):
                histogram[kind[span], rank[ids[slot]]] += 1
            _use(ids, rank)


@njit(cache=True, nogil=True)
def pair_counts(
    one: NDArray[np.unsignedinteger],
    other: NDArray[np.unsignedinteger],
    counts: NDArray[np.int64],
) -> None:
    """Add to `counts` [experts, experts] the pairs that tokens choose in two layers [tokens, k]."""
    for row in range(one.shape[0]):
        for a in one[row]:
            for b in other[row]:
                counts[a, b] += 1
