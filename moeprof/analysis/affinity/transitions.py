"""From the experts of a layer to those of the next one, of the same token.

C_ab counts tokens that use a in the layer and b in the next. Information is between one of the
token's k experts and one of its k next ones, each drawn alike: N = T k^2 pairs of T tokens. The
null shuffles the next layer's sets among tokens of a request, so it keeps every load of every
request: with n_ra and m_rb the loads of request r of T_r tokens, cells have the mean
sum_r n_ra m_rb / T_r, the variance sum_r n_ra (T_r - n_ra) m_rb (T_r - m_rb) / T_r^2 / (T_r - 1).

Predictions are fitted on one half of the requests and judged on the other, both ways.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.affinity.counting import Ids, count_by_request, count_following
from moeprof.analysis.affinity.information import (
    Table,
    entropy_bits,
    information_bits,
    shuffled_information_bits,
)
from moeprof.analysis.affinity.result import LayerTransition

_JUDGED = 1024  # tokens of a half that recall is measured on


class Following(NamedTuple):
    """Tokens of one layer and the next, in order of block."""

    before: Ids  # [tokens, k]
    after: Ids
    request: NDArray[np.int64]  # [tokens]
    block: NDArray[np.int64]
    blocks: int
    size: int


class Judged(NamedTuple):
    """[blocks] right guesses and guesses, judged by what the other half of blocks says."""

    right: NDArray[np.float64]
    popular: NDArray[np.float64]  # right guesses of the most popular expert
    guesses: NDArray[np.float64]


def describe_transition(
    layer: int, next_layer: int, tokens: Following
) -> tuple[LayerTransition, Judged]:
    """Everything about one layer and the next, and the guesses by block for an interval."""
    counts = _by_block(tokens)
    table = counts.sum(axis=0).astype(np.float64)
    information = information_bits(table)
    loads = _loads(tokens)
    bias = _shuffled(*(load.sum(axis=0, keepdims=True) for load in loads))
    null = _shuffled(*loads)
    entropy = entropy_bits(table.sum(axis=0))
    judged = _judge(tokens, counts)
    guesses = judged.guesses.sum()
    recalls = _recalls(tokens, counts)
    return LayerTransition(
        layer=layer,
        next_layer=next_layer,
        tokens=len(tokens.before),
        information_bits=information,
        information_bias_bits=bias,
        information_null_bits=null,
        information_excess_bits=information - null,
        next_entropy_bits=entropy,
        conditional_entropy_bits=entropy - (information - null),
        normalized_information=(information - null) / entropy if entropy else 0.0,
        top1=float(judged.right.sum() / guesses) if guesses else None,
        top1_popularity=float(judged.popular.sum() / guesses) if guesses else None,
        recall_k=recalls[0],
        recall_2k=recalls[1],
        recall_k_popularity=recalls[2],
        recall_2k_popularity=recalls[3],
    ), judged


def _by_block(tokens: Following) -> NDArray[np.int32]:
    """[blocks, experts, next experts] tokens that use both."""
    ends = np.searchsorted(tokens.block, np.arange(tokens.blocks + 1))
    counts = np.zeros((tokens.blocks, tokens.size, tokens.size), np.int32)
    for number in range(tokens.blocks):
        rows = slice(ends[number], ends[number + 1])
        counts[number] = count_following(tokens.before[rows], tokens.after[rows], tokens.size)
    return counts


def _loads(tokens: Following) -> tuple[Table, Table, Table]:
    """[requests, experts] loads of both layers, and [requests, 1] tokens."""
    requests = int(tokens.request.max(initial=0)) + 1
    before, after = (
        count_by_request(ids, tokens.request, requests, tokens.size)
        for ids in (tokens.before, tokens.after)
    )
    total = np.bincount(tokens.request, minlength=requests).astype(np.float64)
    there = total > 0
    return before[there], after[there], total[there, None]


def _shuffled(before: Table, after: Table, total: Table) -> float:
    """Information where next experts are shuffled within each request; loads as `_loads`."""
    mean = before.T @ (after / total)
    spread = total**2 * np.maximum(total - 1, 1)
    variance = (before * (total - before) / spread).T @ (after * (total - after))
    return shuffled_information_bits(mean, variance)


def _judge(tokens: Following, counts: NDArray[np.int32]) -> Judged:
    """The most likely successor of each expert; of one never seen, the most popular expert."""
    k = tokens.before.shape[1]
    guesses = counts.sum(axis=(1, 2)) / k
    right, popular = np.zeros(tokens.blocks), np.zeros(tokens.blocks)
    for half in (0, 1):
        fitted, judged = counts[half::2].sum(axis=0), counts[1 - half :: 2]
        if not fitted.any() or not len(judged):
            guesses[1 - half :: 2] = 0
            continue
        favourite = int(fitted.sum(axis=0).argmax())
        best = np.where(fitted.any(axis=1), fitted.argmax(axis=1), favourite)
        right[1 - half :: 2] = judged[:, np.arange(tokens.size), best].sum(axis=1)
        popular[1 - half :: 2] = judged[:, :, favourite].sum(axis=1)
    return Judged(right, popular, guesses)


def _recalls(tokens: Following, counts: NDArray[np.int32]) -> list[float | None]:
    """Share of a token's next experts among the k and 2k likeliest, and among the most popular.

    An expert's score is the sum over the token's experts a of C_ab / n_a of the other half.
    """
    k = tokens.before.shape[1]
    ranks: list[NDArray[np.int64]] = []
    popular: list[NDArray[np.int64]] = []
    for half in (0, 1):
        fitted = counts[half::2].sum(axis=0)
        rows = np.flatnonzero(tokens.block % 2 != half)
        if not fitted.any() or not len(rows):
            continue
        rows = rows[:: -(-len(rows) // _JUDGED)]
        followed = fitted / np.maximum(fitted.sum(axis=1, keepdims=True), 1)
        load = fitted.sum(axis=0) / fitted.sum()
        score = followed.astype(np.float32)[tokens.before[rows]].sum(axis=1)
        score += 1e-6 * load.astype(np.float32)  # what was never seen: by popularity
        after = tokens.after[rows].astype(np.intp)
        ranks.append(_ranks(score, after))
        popular.append(_ranks(load[None], after.reshape(1, -1)).reshape(after.shape))
    if not ranks:
        return [None] * 4
    by = [np.concatenate(ranks), np.concatenate(popular)]
    return [float((rank < wide).mean()) for rank in by for wide in (k, 2 * k)]


def _ranks(score: NDArray[np.floating], chosen: NDArray[np.intp]) -> NDArray[np.int64]:
    """[tokens, k] experts that score at least as high as each of `chosen`, itself not counted."""
    own = np.take_along_axis(score, chosen, axis=1)
    return np.asarray((score[:, None, :] >= own[:, :, None]).sum(axis=2) - 1)
