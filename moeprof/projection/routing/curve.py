"""Sampled loads between the numbers of tokens that were sampled: straight in log tokens.

What is kept is not a load but its ratio to even routing (`even_scale`), which changes slowly with
tokens where the load itself does not. Numbers of tokens are sampled when they are first needed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from math import log

import numpy as np

from moeprof.projection.routing.step_load import (
    COMPARED,
    Floats,
    Shape,
    StepLoad,
    even_scale,
    with_fields,
)

# Beyond the last one ratios are kept: chance within a batch has all but gone.
MOST_TOKENS = 16_384
_EXACT = 4  # every number of tokens up to here is sampled
GRID = tuple(
    sorted({*range(1, _EXACT), *(2**n for n in range(2, 15)), *(3 * 2**n for n in range(1, 13))})
)


class LoadCurve:
    """`sample(tokens)` is [COMPARED, layers], means over steps of `tokens` on `ranks`.

    `limits` are numbers of tokens where sampling changes its method: no straight line crosses one.
    """

    def __init__(
        self,
        shape: Shape,
        ranks: int,
        sample: Callable[[int], Floats],
        limits: tuple[int, ...] = (),
    ) -> None:
        self._shape, self._ranks, self._sample = shape, ranks, sample
        ends = {end for limit in limits for end in (limit, limit + 1)}
        self._grid = sorted({*GRID, *(end for end in ends if 1 <= end <= MOST_TOKENS)})
        self._ratios: dict[int, Floats] = {}

    def at(self, tokens: float) -> Floats:
        """[COMPARED, layers] at any number of tokens; below one token, in proportion to it."""
        if tokens < 1:
            return tokens * self.at(1)
        scale = self._scale(tokens)
        within = min(tokens, float(self._grid[-1]))
        place = bisect_right(self._grid, within) - 1
        low = self._grid[place]
        if within == low:
            return self._ratio(low) * scale
        high = self._grid[place + 1]
        weight = log(within / low) / log(high / low)
        between = ((1 - weight) * self._ratio(low) + weight * self._ratio(high)) * scale
        # A curve that bends towards its end would be overshot.
        ends = self._ratio(low) * self._scale(low), self._ratio(high) * self._scale(high)
        return np.clip(between, np.minimum(*ends), np.maximum(*ends))

    def _ratio(self, tokens: int) -> Floats:
        if tokens not in self._ratios:
            self._ratios[tokens] = self._sample(tokens) / self._scale(tokens)
        return self._ratios[tokens]

    def _scale(self, tokens: float) -> Floats:
        return even_scale(self._shape, self._ranks, tokens)[:, None]


def read_curve(nothing: StepLoad, tokens: float, curve: Callable[[], LoadCurve]) -> StepLoad:
    """`nothing` with `tokens`, by `curve`; where that has one layer, it stands for all."""
    load = replace(nothing, tokens=tokens)
    if not tokens or not load.shape.layers:
        return load
    values = curve().at(tokens)
    return with_fields(load, np.broadcast_to(values, (len(COMPARED), load.shape.layers)))
