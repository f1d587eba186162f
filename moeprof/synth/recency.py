"""Recency of what tokens use: measured, and the gains that make drawn tokens show the same.

For a model that is linear in the logarithm of the gains, the likeliest gains are those under which
every rank is drawn as often as it was seen. So each is multiplied by seen / drawn, again and again.
Ranks are taken together in bins, alone up to 2k and then ever wider, and layers lend each other
what few tokens cannot tell.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moeprof.synth.routing import RoutingModel
from moeprof.synth.schedule import Spans
from moeprof.threads import map_threads

_ROUNDS = 15
_LENT = 300.0  # assignments that a layer takes from the mean of all layers
_WIDER = 1.15  # each bin than the one before
_LEAST, _MOST = 1e-6, 1e6
_ASSIGNMENTS, _MOST_DRAWS = 500_000, 16  # drawn in a round


def rank_bins(experts: int, top_k: int) -> NDArray[np.int64]:
    """[experts + 1] bin of each recency rank; the last, for a first use, is alone."""
    edges = list(range(min(2 * top_k, experts)))
    while edges[-1] < experts - 1:
        edges.append(min(experts - 1, max(edges[-1] + 1, int(edges[-1] * _WIDER))))
    bins = np.searchsorted(edges, np.arange(experts), side="right") - 1
    return np.append(bins, bins[-1] + 1)


def recency(
    spans: Spans, experts: NDArray[np.unsignedinteger], bins: NDArray[np.int64]
) -> NDArray[np.float64]:
    """[layers, 2, bins] how often experts [tokens, layers, k] of each recency were used."""

    def count(layer: int) -> NDArray[np.float64]:
        from moeprof.synth.kernels import new_ranks, recency_histogram

        histogram = np.zeros((2, len(bins)), np.int64)
        ranks = new_ranks(len(bins) - 1)
        ids = experts[:, layer]
        recency_histogram(spans.rows, spans.starts, spans.fresh, spans.kind, ids, ranks, histogram)
        return np.stack([np.bincount(bins, weights=counts) for counts in histogram])

    return np.stack(map_threads(count, range(experts.shape[1])))


def match_recency(
    routing: RoutingModel, spans: Spans, seen: NDArray[np.unsignedinteger], seed: int
) -> RoutingModel:
    """`routing` with the gains under which it draws the recencies of `seen` [tokens, L, k]."""
    bins = rank_bins(routing.experts, routing.top_k)
    wanted = _pooled(recency(spans, seen, bins))
    drawn = np.empty_like(seen)
    gain = np.ones(wanted.shape)
    draws = int(np.clip(_ASSIGNMENTS / seen[spans.rows].size, 1, _MOST_DRAWS))
    for done in range(_ROUNDS):
        routing = replace(routing, gain=gain[..., bins])
        counts = np.zeros(wanted.shape)
        for draw in range(draws):  # a short recording once would be mostly noise
            routing.draw_spans(spans, seed + done * draws + draw, drawn)
            counts += recency(spans, drawn, bins)
        ratio = wanted / _pooled(counts / draws)
        # Full steps first, then smaller ones: what is drawn is a sample, and its noise averages out
        gain = gain * np.clip(ratio, 0.2, 5.0) ** min(0.8, 5.0 / (done + 1))
        gain = np.clip(gain / gain[..., -1:], _LEAST, _MOST)
    for kind in (0, 1):  # a phase that was not seen is taken to be like the other
        if not (spans.kind == kind).any():
            gain[:, kind] = gain[:, 1 - kind]
    return replace(routing, gain=gain[..., bins])


def _pooled(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """[layers, 2, bins] counts with some of the mean layer in each; never 0."""
    mean = counts.sum(axis=0) / np.maximum(counts.sum(axis=(0, 2)), 1)[:, None]
    pooled: NDArray[np.float64] = counts + _LENT * mean + 1e-9
    return pooled
