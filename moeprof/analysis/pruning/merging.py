"""Which experts stand in the same places: pairs that a study of merging should look at first.

The context of an expert is what its tokens choose in the layer before and in the layer behind.
With c(e, f) the (token, expert) pairs of expert e and expert f of a neighbouring layer, it is
(c(e, f) / c(e) - p(f)) / sqrt(p(f)) with p(f) = c(f) / sum c: how it differs from the choices of
all tokens, as in a chi-squared distance. Similarity of two experts is the cosine of their contexts.
Pairs are chosen on half of the requests and their similarity is that on the other half. Experts
that are chosen together have like contexts, too: those that stand in for each other are the pairs
whose `together` is small.

Methods that merge group experts by router logits (M-SMoE, arXiv 2310.01334), by outputs (HC-SMoE,
arXiv 2410.08589) or by weights. A recording of choices has none of these: it tells when two experts
are asked, not whether they would answer alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.result import Result
from moeprof.threads import map_threads
from moeprof.trace import Trace

SAMPLE = 1 << 16  # tokens of each half: 2 million pairs a layer at top-4 and 2 neighbours
PAIRS = 3  # of each layer
SHOWN = 20  # in all
FEWEST = 30  # tokens of each half that an expert must have: fewer tell no context


Choices = list[NDArray[np.int64]]  # [tokens, k] of each half


@dataclass(frozen=True)
class MergePair(Result):
    """Two experts of one layer that are chosen in like contexts."""

    layer: int
    experts: list[int]
    similarity: float  # cosine of contexts, on requests held out
    fitted: float  # the same on those the pair was chosen on
    together: float  # tokens that choose both, over what independent choices would make
    load: list[float]  # share of the layer's assignments of each


@dataclass(frozen=True)
class MergeHints(Result):
    """The pairs that are most alike, beside what any two experts of a layer are."""

    pairs: list[MergePair]
    typical: float  # median similarity of two experts of a layer, on requests held out
    high: float  # its 99th percentile
    tokens: int  # of each half


def find_pairs(trace: Trace, half: NDArray[np.integer]) -> MergeHints | None:
    """The pairs most alike by context; `half` [tokens] is 0 to choose them by, 1 to judge them by.

    None where a single layer was recorded, which has no neighbours.
    """
    if len(trace.layers) < 2:
        return None
    rows = [_spread(np.flatnonzero(half == part)) for part in (0, 1)]
    chosen = map_threads(lambda layer: _choices(trace, layer, rows), trace.layers)
    size = trace.experts_per_layer
    places = {layer: place for place, layer in enumerate(trace.layers)}

    def judge(layer: int) -> tuple[list[MergePair], NDArray[np.float64]]:
        near = [p for p in (places[layer] - 1, places[layer] + 1) if 0 <= p < len(chosen)]
        return _judge(layer, chosen[places[layer]], [chosen[p] for p in near], size)

    judged = map_threads(judge, trace.layers)
    pairs = sorted((pair for found, _ in judged for pair in found), key=lambda p: -p.similarity)
    typical, high = np.quantile(np.concatenate([values for _, values in judged]), (0.5, 0.99))
    return MergeHints(pairs[:SHOWN], float(typical), float(high), min(map(len, rows)))


def _spread(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most SAMPLE of `rows`, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(np.int64)]


def _choices(trace: Trace, layer: int, rows: list[NDArray[np.int64]]) -> Choices:
    """The experts of a layer for the rows of each half; -1 where it was not recorded."""
    recorded = trace.recorded(layer)
    place = np.cumsum(recorded) - 1  # among the rows that have the layer
    ids = trace.experts(layer)
    return [
        np.where(recorded[part, None], ids[place[part].clip(min=0)].astype(np.int64), -1)
        for part in rows
    ]


def _judge(
    layer: int, own: Choices, near: list[Choices], size: int
) -> tuple[list[MergePair], NDArray[np.float64]]:
    """The pairs of one layer, and the similarity of any two of its experts, on the later half."""
    fitted, judged = (
        _similarity(own[half], [other[half] for other in near], size) for half in (0, 1)
    )
    one, other = np.triu_indices(size, 1)
    known = ~np.isnan(fitted[one, other] + judged[one, other])
    one, other = one[known], other[known]
    uses = _pairs(own[1], own[1], size)  # tokens that choose both; on the diagonal, that choose it
    tokens = max(len(own[1]), 1)
    load = np.diag(uses) / max(np.diag(uses).sum(), 1)
    pairs: list[MergePair] = []
    taken: set[int] = set()
    for place in np.argsort(-fitted[one, other], kind="stable"):
        a, b = int(one[place]), int(other[place])
        if len(pairs) == PAIRS:
            break
        if not taken & {a, b}:
            taken |= {a, b}
            expected = uses[a, a] * uses[b, b] / tokens
            pairs.append(
                MergePair(
                    layer=layer,
                    experts=[a, b],
                    similarity=float(judged[a, b]),
                    fitted=float(fitted[a, b]),
                    together=float(uses[a, b] / expected),
                    load=[float(load[a]), float(load[b])],
                )
            )
    return pairs, judged[one, other]


def _similarity(
    own: NDArray[np.int64], near: list[NDArray[np.int64]], size: int
) -> NDArray[np.float64]:
    """[experts, experts] cosine of contexts; NaN for experts of too few tokens."""
    contexts = []
    for other in near:
        counts = _pairs(own, other, size)
        total = counts.sum(axis=1, keepdims=True)
        share = counts.sum(axis=0) / max(counts.sum(), 1)
        rare = np.sqrt(np.where(share > 0, share, 1))
        contexts.append((counts / np.maximum(total, 1) - share) / rare)
    context = np.concatenate(contexts, axis=1)
    length = np.linalg.norm(context, axis=1)
    few = np.bincount(own[own >= 0], minlength=size) < FEWEST
    length[few | (length == 0)] = np.nan
    cosine: NDArray[np.float64] = context @ context.T / length / length[:, None]
    return cosine


def _pairs(one: NDArray[np.int64], other: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """[experts, experts] tokens that choose e of `one` and f of `other`, both [tokens, k]."""
    there = (one[:, 0] >= 0) & (other[:, 0] >= 0)
    cells = one[there, :, None] * size + other[there, None, :]
    return np.bincount(cells.ravel(), minlength=size * size).reshape(size, size).astype(float)
