"""How fast is the busiest rank of every layer and step found, beside numpy's bincount?

    python benchmarks/placement_replay.py

1 million tokens of the shape of MiniMax-M3 (57 layers x 128 experts, top-4), 64 redundant experts,
64 GPUs, steps of 256 tokens. The baseline does the same with one `np.bincount` a layer over
(step, expert) and one product with the map, on all cores as ours.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from timing import best_of

from moeprof.model import MoEModel
from moeprof.placement import Placement, Topology
from moeprof.placement.replay import RoutedIds, Share, replay_ranks
from moeprof.trace import Batching, TokenRows, Trace

TOKENS, GPUS, REDUNDANT, BATCH = 1_000_000, 64, 64, 256


def made_up() -> Trace:
    """Skewed ids, distinct within a token: enough to time a replay."""
    model = MoEModel.preset("minimax-m3")
    rng = np.random.default_rng(0)
    layers = len(model.moe_layers)
    experts = np.empty((TOKENS, layers, 4), np.uint8)
    for layer in range(layers):
        weight = rng.lognormal(0, 1, 128)
        first = rng.choice(128, TOKENS, p=weight / weight.sum())
        experts[:, layer] = (
            first[:, None] + rng.integers(0, 32, TOKENS)[:, None] + [0, 1, 5, 9]
        ) % 128
    index = np.arange(TOKENS)
    rows = TokenRows(
        step=index // BATCH,
        request=(index % BATCH).astype(np.int32),
        position=(index // BATCH).astype(np.int32),
        phase=np.ones(TOKENS, np.int8),
        experts=experts,
    )
    return Trace.in_memory(model, rows)


def some_placement(layers: int) -> Placement:
    """A valid map with 64 experts twice."""
    table = np.concatenate([np.arange(128), (np.arange(REDUNDANT) * 2 + 1) % 128])
    topology = Topology.even(GPUS, 128 + REDUNDANT)
    return Placement(np.tile(np.sort(table), (layers, 1)), 128, topology, allow_duplicates=True)


def by_bincount(ids: RoutedIds, steps: int, placement: Placement) -> NDArray[np.float64]:
    """[layers, steps] the busiest rank, vectorised."""
    step = np.repeat(np.arange(steps) * 128, BATCH)[:TOKENS, None]

    def layer(row: int) -> NDArray[np.float64]:
        flat = (step + ids.experts[row]).ravel()
        counts = np.bincount(flat, minlength=steps * 128).reshape(steps, 128)
        share = placement.copies_on_rank[row].T / placement.logical_replica_count[row][:, None]
        busiest: NDArray[np.float64] = (counts @ share).max(axis=1)
        return busiest

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(layer, range(len(ids.experts)))))


def main() -> None:
    """Print seconds and ratios."""
    trace = made_up()
    placement = some_placement(len(trace.layers))
    ids = RoutedIds.of(trace)
    starts = np.append(np.arange(0, TOKENS, BATCH), TOKENS)
    steps = Batching(np.arange(TOKENS), starts)
    count = len(starts) - 1
    small = Batching(np.arange(BATCH), np.array([0, BATCH]))
    for share in Share:
        replay_ranks(ids, small, placement, share)  # compiles
    ours = replay_ranks(ids, steps, placement).busiest
    np.testing.assert_allclose(ours, by_bincount(ids, count, placement))
    seconds = best_of(
        3,
        bincount=lambda: by_bincount(ids, count, placement),
        equal=lambda: replay_ranks(ids, steps, placement, Share.EQUAL),
        round_robin=lambda: replay_ranks(ids, steps, placement, Share.ROUND_ROBIN),
        lp=lambda: replay_ranks(ids, steps, placement, Share.LP),
    )
    print(f"{TOKENS:,} tokens, {len(trace.layers)} x 128 top-4, {GPUS} GPUs, {count:,} steps")
    print(f"{'':<14}{'seconds':>9}{'x bincount':>12}{'asked':>8}")
    for name, took in seconds.items():
        asked = "3" if name == "equal" else ""
        print(f"{name:<14}{took:9.2f}{seconds['bincount'] / took:12.1f}{asked:>8}")


if __name__ == "__main__":
    main()
