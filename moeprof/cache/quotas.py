"""Unequal slots by layer: for a total budget, what the layers' own curves make of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.events import Steps
from moeprof.errors import InputError
from moeprof.trace import Trace

_EXACT_UNITS = 65_536  # of bytes, up to which the best division of a budget is sought exactly


class Quotas(NamedTuple):
    """A budget, shared out."""

    slots: list[int]  # of each layer
    short_by: int = 0  # hits, at most, that the best division has more in the fitted window


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
    return _divided(hits, np.ones(layers, np.int64), budget)


def best_byte_quotas(hits: NDArray[np.int64], sizes: NDArray[np.int64], budget: int) -> Quotas:
    """As `best_quotas`, where an expert of layer l takes sizes[l] bytes of `budget`.

    Exact where the budget is few times the sizes' common divisor, as it is with a handful of
    formats; else the steepest steps of the curves' concave hulls first, with the distance to the
    bound that fractions of a step give (Fox 1966, doi:10.1287/opre.14.2.210).
    """
    if budget < sizes.sum():
        raise InputError(f"budget of {budget} bytes: one expert a layer takes {sizes.sum()}")
    unit = int(np.gcd.reduce(sizes))
    if budget // unit <= _EXACT_UNITS or (sizes == unit).all():
        most = int((sizes // unit * hits.shape[1]).sum())
        return Quotas(_divided(hits, sizes // unit, min(budget // unit, most)).tolist())
    return _steepest_first(hits, sizes, budget)


def _divided(hits: NDArray[np.int64], weight: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """Slots of each layer, of which one takes weight[layer] of `budget`."""
    layers, most = hits.shape
    best = np.full(budget + 1, -1, np.int64)
    best[0] = 0
    choice = np.zeros((layers, budget + 1), np.uint16)
    for layer in range(layers):
        following = np.full(budget + 1, -1, np.int64)
        for slots in range(1, min(most, budget // int(weight[layer])) + 1):
            taken = slots * int(weight[layer])
            before = best[: budget + 1 - taken]
            total = np.where(before < 0, -1, before + hits[layer, slots - 1])
            better = total > following[taken:]
            following[taken:][better] = total[better]
            choice[layer, taken:][better] = slots
        best = following
    return _traced_back(choice, weight, budget - int(best[::-1].argmax()))


def _traced_back(
    choice: NDArray[np.uint16], weight: NDArray[np.int64], budget: int
) -> NDArray[np.int64]:
    """The slots of each layer on the best way to `budget`."""
    quotas = np.zeros(len(choice), np.int64)
    for layer in range(len(choice) - 1, -1, -1):
        quotas[layer] = choice[layer, budget]
        budget -= int(quotas[layer] * weight[layer])
    return quotas


def _hull_steps(hits: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(from slots, to slots, hits more) along the upper concave hull of one layer's curve."""
    corners = [0]
    for point in range(1, len(hits)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (hits[b] - hits[a]) * (point - b) > (hits[point] - hits[b]) * (b - a):
                break
            corners.pop()
        corners.append(point)
    return [(a + 1, b + 1, int(hits[b] - hits[a])) for a, b in pairwise(corners)]


def _steepest_first(hits: NDArray[np.int64], sizes: NDArray[np.int64], budget: int) -> Quotas:
    """Hull steps by hits a byte, as long as they fit; what is left goes to single slots."""
    slots = np.ones(len(sizes), np.int64)
    left = int(budget - sizes.sum())
    steps = [
        (gain / ((stop - start) * int(sizes[layer])), layer, start, stop, gain)
        for layer in range(len(sizes))
        for start, stop, gain in _hull_steps(hits[layer])
    ]
    bound: float | None = None
    reached = 0.0
    for rate, layer, start, stop, gain in sorted(steps, key=lambda step: -step[0]):
        cost = (stop - start) * int(sizes[layer])
        if slots[layer] == start and cost <= left:
            slots[layer], left = stop, left - cost
            reached += gain
        elif bound is None:
            bound = reached + rate * left
    while True:
        gains = np.where(
            (sizes <= left) & (slots < hits.shape[1]),
            (hits[range(len(sizes)), slots.clip(0, hits.shape[1] - 1)]
             - hits[range(len(sizes)), slots - 1]) / sizes,
            0.0,
        )  # fmt: skip
        layer = int(gains.argmax())
        if gains[layer] <= 0:
            break
        reached += gains[layer] * sizes[layer]
        slots[layer] += 1
        left -= int(sizes[layer])
    short = 0.0 if bound is None else bound - reached
    return Quotas(slots.tolist(), max(int(short), 0))


def _fitted_hits(trace: Trace, steps: Steps, until: int) -> NDArray[np.int64]:
    """[layers, slots] LRU hits of each layer over the steps before `until`."""
    from moeprof.cache.curve import layer_hits

    return layer_hits(trace, steps._replace(starts=steps.starts[: until + 1]))


def quotas_for(trace: Trace, steps: Steps, until: int, slots: Sequence[int]) -> dict[int, Quotas]:
    """For each mean number of slots, the best quotas on the steps before `until`."""
    hits = _fitted_hits(trace, steps, until)
    return {mean: Quotas(best_quotas(hits, mean * len(hits)).tolist()) for mean in slots}


def byte_quotas_for(
    trace: Trace, steps: Steps, until: int, sizes: NDArray[np.int64], budget: int
) -> Quotas:
    """The best quotas for a budget in bytes, on the steps before `until`."""
    return best_byte_quotas(_fitted_hits(trace, steps, until), sizes, budget)
