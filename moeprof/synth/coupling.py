"""How much layers agree: the information that a token's experts in one hold about the next.

bits = sum over pairs (e, f) of p(e, f) log2(p(e, f) / (p(e) p(f))), p of the k x k pairs that each
token chooses in two neighbouring layers. A short recording shows bits by chance, and so does what
is drawn at the same length: the two are compared alike.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moeprof.synth.routing import RoutingModel
from moeprof.synth.schedule import Spans
from moeprof.threads import map_threads

_HALVINGS = 6
_MOST = 0.95


def coupling_bits(experts: NDArray[np.unsignedinteger], size: int) -> float:
    """Mean over neighbouring layers of the bits of experts [tokens, layers, k] below `size`."""
    if experts.shape[1] < 2:
        return 0.0
    pairs = range(experts.shape[1] - 1)
    return float(np.mean(map_threads(lambda n: _bits(experts, n, size), pairs)))


def _bits(experts: NDArray[np.unsignedinteger], layer: int, size: int) -> float:
    from moeprof.synth.kernels import pair_counts

    counts = np.zeros((size, size), np.int64)
    pair_counts(experts[:, layer], experts[:, layer + 1], counts)
    both = counts / counts.sum()
    apart = both.sum(axis=1, keepdims=True) * both.sum(axis=0)
    there = both > 0
    return float((both[there] * np.log2(both[there] / apart[there])).sum())


def match_coupling(
    routing: RoutingModel, spans: Spans, seen: NDArray[np.unsignedinteger], seed: int
) -> float:
    """The `common` under which `routing` shows the bits of `seen` [tokens, L, k], or nearly."""
    if routing.layers < 2:
        return 0.0
    wanted = coupling_bits(seen[spans.rows], routing.experts)
    drawn = np.empty_like(seen)
    low, high = 0.0, _MOST
    for done in range(_HALVINGS):
        middle = 0.0 if not done else (low + high) / 2
        replace(routing, common=middle).draw_spans(spans, seed, drawn)
        enough = coupling_bits(drawn[spans.rows], routing.experts) >= wanted
        if not done and enough:  # the profiles alone tie the layers that much
            return 0.0
        low, high = (low, middle) if enough else (middle, high)
    return (low + high) / 2
