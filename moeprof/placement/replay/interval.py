"""How far a figure may lie from that of all requests like these: a bootstrap over requests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.result import Result

_Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True)
class Interval(Result):
    """A value and its 95 % interval, None where requests could not be drawn anew.

    The interval is the value and 1.96 bootstrap standard errors to both sides: the spread of the
    figure over samples of as many requests, drawn with replacement (Efron, Tibshirani: An
    Introduction to the Bootstrap, 1993, chapters 6 and 13). Percentiles would not do: a maximum of
    a sample drawn anew lies above that of the sample on average, and its percentiles with it.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, value: float, drawn: NDArray[np.float64], least: float | None = None) -> Interval:
        """`value` with the spread of `drawn` around it, cut off below `least`."""
        if len(drawn) < 2:
            return cls(float(value))
        error = _Z95 * float(np.std(drawn, ddof=1))
        low = value - error if least is None else max(value - error, min(least, value))
        return cls(float(value), float(low), float(value + error))
