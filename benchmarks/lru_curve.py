"""The exact LRU curve at every size in one pass, beside one plain LRU loop at one size.

    python benchmarks/lru_curve.py

MiniMax-M3's shape, 128 experts and top-4 a layer, synthetic routing, one core.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray
from timing import best_of

from moeprof.cache.kernels import global_distances, layer_distances, new_timeline
from moeprof.model import MoEModel
from moeprof.trace import synthesize_rows

TOKENS = 20_000
SLOTS = 32


def by_layer(experts: NDArray[np.uint8]) -> int:
    """One cache a layer; returns accesses."""
    layers, tokens, _ = experts.shape
    starts, recorded = np.arange(tokens + 1), np.ones(tokens, bool)
    histogram = np.zeros(129, np.int64)
    for layer in range(layers):
        rank, stamp = np.arange(128, dtype=np.uint8), np.full(128, -1)
        layer_distances(experts[layer], recorded, starts, rank, stamp, 0, histogram)
    return int(histogram.sum())


def in_one_pool(experts: NDArray[np.uint8]) -> int:
    """One cache for all layers."""
    layers, tokens, _ = experts.shape
    recorded, stamp = np.ones((layers, tokens), bool), np.full((layers, 128), -1)
    histogram = np.zeros(layers * 128 + 1, np.int64)
    timeline = new_timeline(layers * 128)
    global_distances(experts, recorded, np.arange(tokens + 1), timeline, stamp, 0, histogram)
    return int(histogram.sum())


def plain_loop(experts: NDArray[np.uint8]) -> int:
    """Hits of one LRU cache of one layer, as a script would write it."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for row in experts[0].tolist():
        hits += sum(expert in cache for expert in row)
        for expert in row:
            cache[expert] = None
            cache.move_to_end(expert)
        while len(cache) > SLOTS:
            cache.popitem(last=False)
    return hits


def main() -> None:
    """Print accesses a second and the ratios."""
    model = MoEModel.preset("minimax-m3")
    rows, _ = synthesize_rows(model, TOKENS, prefill=0.0, skew=1.0)
    experts = np.ascontiguousarray(rows.experts.swapaxes(0, 1))
    accesses = by_layer(experts)
    in_one_pool(experts[:, :10])  # compile
    seconds = best_of(
        5,
        layer=lambda: by_layer(experts),
        pool=lambda: in_one_pool(experts),
        loop=lambda: plain_loop(experts),
    )
    loop = experts[0].size / seconds["loop"]
    layer, pool = accesses / seconds["layer"], accesses / seconds["pool"]
    print("                             million accesses/s  ratio")
    for name, speed in (
        (f"plain loop, {SLOTS} slots", loop),
        ("per layer, all 128 sizes", layer),
        ("one pool, all 7,296 sizes", pool),
    ):
        print(f"{name:<28} {speed / 1e6:18.2f} {speed / loop:5.0f}x")


if __name__ == "__main__":
    main()
