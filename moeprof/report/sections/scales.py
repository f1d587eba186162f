"""Axes of plots whose values span powers of ten or of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log2, log10

from moeprof.report.blocks import Axis, Tick, axis_ticks


@dataclass(frozen=True)
class Scale:
    """Values to places from 0 to 1, and the axis that says so."""

    low: float
    high: float
    axis: Axis
    logarithmic: bool

    def place(self, value: float) -> float:
        """From 0 to 1; what lies outside is put at the end."""
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = (log10(max(each, 1e-30)) for each in (value, low, high))
        return min(max((value - low) / (high - low), 0.0), 1.0)


def linear_scale(label: str, values: Sequence[float]) -> Scale:
    """From 0 to a little above the largest."""
    top = 1.05 * max(values)
    ticks = [Tick(at / top, f"{at:,g}") for at in axis_ticks(0, top, 5)]
    return Scale(0.0, top, Axis(label, ticks), False)


def log_scale(label: str, values: Sequence[float]) -> Scale:
    """Powers of ten around `values`, with ticks at 1, 2 and 5 where few powers are spanned."""
    low, high = 0.9 * min(values), 1.1 * max(values)
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 3 else (1, 3) if len(powers) <= 5 else (1,)
    scale = Scale(low, high, Axis(label, []), True)
    marks = [step * 10.0**power for power in powers for step in steps]
    ticks = [Tick(scale.place(at), f"{at:,g}") for at in marks if low <= at <= high]
    return Scale(low, high, Axis(label, ticks), True)


def doubling_scale(label: str, values: Sequence[int]) -> Scale:
    """From the smallest to the largest, a tick a doubling; every other may be left out."""
    low, high = 0.85 * min(values), 1.18 * max(values)
    scale = Scale(low, high, Axis(label, []), True)
    marks = [2**power for power in range(floor(log2(max(values))) + 1) if 2**power >= min(values)]
    ticks = [Tick(scale.place(at), f"{at:,}", minor=n % 2 == 1) for n, at in enumerate(marks)]
    return Scale(low, high, Axis(label, ticks), True)
