"""Unequal slots by layer: for a total budget, what the layers' own curves make of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.events import Steps
from moeprof.errors import InputError
from moeprof.trace import Trace


def best_quotas(hits: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """Slots of each layer that hit most together, exact, by dynamic programming.

    hits [layers, slots]: hits of a layer with 1, 2, ... slots. Every layer gets one slot at
    least, `budget` slots are given in all. Of equal answers, later layers get more. Raises
    InputError where the budget is below one slot a layer.
    """
    layers, most = hits.shape
    if budget < layers:
        raise InputError(f"{budget} slots for {layers} layers: one each is needed")
    budget = min(budget, layers * most)
    best = np.full(budget + 1, -1, np.int64)
    best[0] = 0
    choice = np.zeros((layers, budget + 1), np.int64)
    for layer in range(layers):
        following = np.full(budget + 1, -1, np.int64)
        for slots in range(1, min(most, budget) + 1):
            before = best[: budget + 1 - slots]
            total = np.where(before < 0, -1, before + hits[layer, slots - 1])
            better = total > following[slots:]
            following[slots:][better] = total[better]
            choice[layer, slots:][better] = slots
        best = following
    return _traced_back(choice, budget)


def _traced_back(choice: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """The slots of each layer on the best way to `budget`."""
    quotas = np.zeros(len(choice), np.int64)
    for layer in range(len(choice) - 1, -1, -1):
        quotas[layer] = choice[layer, budget]
        budget -= int(quotas[layer])
    return quotas


def quotas_for(
    trace: Trace, steps: Steps, until: int, slots: Sequence[int]
) -> dict[int, list[int]]:
    """For each mean number of slots, the best quotas on the steps before `until`."""
    from moeprof.cache.curve import layer_hits

    hits = layer_hits(trace, steps._replace(starts=steps.starts[: until + 1]))
    return {mean: best_quotas(hits, mean * len(trace.layers)).tolist() for mean in slots}
