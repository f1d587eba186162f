"""Do two recordings route the same tokens to the same experts? Per layer, beside chance.

Agreement of a token is |A_t and B_t| / k. Chance is the same with the tokens of B shuffled: both
keep how often they use each expert, and nothing else is common.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.comparison.pairing import CommonTokens
from moeprof.analysis.comparison.request_sums import count_shared, layer_ids
from moeprof.analysis.comparison.results import Agreement, LayerAgreement
from moeprof.analysis.uncertainty import Interval, draw_requests, interval_of
from moeprof.trace import Trace

SHUFFLED = 1 << 16  # tokens that chance is told from: to 0.2 points


class LayerMatches(NamedTuple):
    """What agrees in one layer, by request."""

    sums: NDArray[np.float64]  # [requests, (agreement, exact, first)] summed over tokens
    tokens: NDArray[np.int64]  # [requests]
    chance: NDArray[np.float64]  # [3]


def shuffle_tokens(tokens: int, seed: int) -> NDArray[np.int64]:
    """Some of the places below `tokens` in random order, to tell chance from."""
    rng = np.random.default_rng(seed)
    return rng.choice(tokens, min(tokens, SHUFFLED), replace=False)


def match_layer(
    a: Trace,
    b: Trace,
    layers: tuple[int, int],
    common: CommonTokens,
    *,
    requests: int,
    shuffled: NDArray[np.int64],
) -> LayerMatches:
    """What agrees in native layer layers[0] of A and layers[1] of B on the common tokens.

    `shuffled` are places of common tokens, drawn by `shuffle_tokens`.
    """
    ids_a, ids_b, request = common_ids(a, b, layers, common)
    sums = _sum_matches(ids_a, ids_b, request, requests)
    drawn = shuffled[shuffled < len(request)]  # fewer where the layer was not always recorded
    chance = [
        column.mean() if len(drawn) else 0.0
        for column in _matches(ids_a[np.sort(drawn)], ids_b[drawn])
    ]
    tokens = np.bincount(request, minlength=requests)
    return LayerMatches(sums / (a.top_k, 1, 1), tokens, np.array(chance) / (a.top_k, 1, 1))


def common_ids(
    a: Trace, b: Trace, layers: tuple[int, int], common: CommonTokens
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.unsignedinteger], NDArray[np.int64]]:
    """[tokens, k] experts of the common tokens in A and in B, and the place of their request."""
    ids_a, recorded_a = layer_ids(a, layers[0])
    ids_b, recorded_b = layer_ids(b, layers[1])
    rows_a, rows_b, request = common.rows_a, common.rows_b, common.request
    both = np.ones(len(rows_a), bool)
    for recorded, rows in ((recorded_a, rows_a), (recorded_b, rows_b)):
        if not isinstance(recorded, slice):
            both &= recorded[rows]
    if not both.all():
        rows_a, rows_b, request = rows_a[both], rows_b[both], request[both]
    return _taken(ids_a, rows_a), _taken(ids_b, rows_b), request


def _taken(
    ids: NDArray[np.unsignedinteger], rows: NDArray[np.int64]
) -> NDArray[np.unsignedinteger]:
    """`ids` [tokens, k] of ascending or other `rows`, not copied where these are all in order."""
    everything = len(rows) == len(ids) and bool((np.diff(rows) == 1).all())
    return ids if everything else ids.take(rows, axis=0)


def _sum_matches(
    one: NDArray[np.unsignedinteger],
    other: NDArray[np.unsignedinteger],
    request: NDArray[np.int64],
    requests: int,
) -> NDArray[np.float64]:
    """[requests, 3] of `_matches`, each summed: one histogram tells all three."""
    shared, _, first = _matches(one, other)
    kinds = one.shape[1] + 1
    cell = (request * kinds + shared) * 2 + first
    found = np.bincount(cell, minlength=requests * kinds * 2).reshape(requests, kinds, 2)
    by_shared = found.sum(axis=2)
    agreeing = by_shared @ np.arange(kinds)
    return np.stack([agreeing, by_shared[:, -1], found[:, :, 1].sum(axis=1)], axis=1).astype(float)


def _matches(
    one: NDArray[np.unsignedinteger], other: NDArray[np.unsignedinteger]
) -> list[NDArray[np.integer] | NDArray[np.bool_]]:
    """[tokens] of: how many experts are the same, all of them, the first choice."""
    shared = count_shared(one, other)
    return [shared, shared == one.shape[1], one[:, 0] == other[:, 0]]


def judge_agreement(
    layers: Sequence[int],
    matches: Sequence[LayerMatches],
    known_by: str,
    *,
    ordered: bool,
    seed: int,
) -> Agreement:
    """The agreement of all layers, `ordered` where both recorded the order of choice."""
    shares = np.stack([match.sums.sum(axis=0) / max(match.tokens.sum(), 1) for match in matches])
    chance = np.stack([match.chance for match in matches])
    names = ("agreement", "exact", "first")[: 3 if ordered else 2]
    agreement, exact, first = shares.mean(axis=0).tolist()
    return Agreement(
        agreement=agreement,
        interval=_interval(matches, seed),
        exact=exact,
        first=first if ordered else None,
        chance=dict(zip(names, chance.mean(axis=0).tolist(), strict=False)),
        tokens=int(max(match.tokens.sum() for match in matches)),
        known_by=known_by,
        per_layer=[
            LayerAgreement(layer, share, null)
            for layer, share, null in zip(
                layers, shares[:, 0].tolist(), chance[:, 0].tolist(), strict=True
            )
        ],
    )


def _interval(matches: Sequence[LayerMatches], seed: int) -> Interval | None:
    """Of the mean over layers, requests drawn with replacement among those with common tokens."""
    sums = np.stack([match.sums[:, 0] for match in matches], axis=1)  # [requests, layers]
    tokens = np.stack([match.tokens for match in matches], axis=1)
    there = tokens.any(axis=1)
    if there.sum() < 2:
        return None
    weights = draw_requests(int(there.sum()), seed=seed)
    shares = (weights @ sums[there]) / np.maximum(weights @ tokens[there], 1)
    return interval_of(shares.mean(axis=1))
