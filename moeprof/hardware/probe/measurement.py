"""Repeat a measurement for a while and keep its spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

from moeprof import __version__
from moeprof.errors import MoeprofError
from moeprof.hardware.figure import FIGURE_UNITS, Figure
from moeprof.quantity import Provenance

_MIN_ROUNDS = 3


class NotMeasuredError(MoeprofError):
    """Something that this machine lacks or cannot do; the probe reports it and goes on."""


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and what `ends` says at either end."""

    median: float
    low: float
    high: float
    rounds: int
    ends: str = "least and most"


def measure(once: Callable[[], float], seconds: float) -> Spread:
    """What `once` returns, repeated for `seconds` and at least 3 times after one to warm up."""
    once()
    values: list[float] = []
    ends = time.perf_counter() + seconds
    while len(values) < _MIN_ROUNDS or time.perf_counter() < ends:
        values.append(once())
    return Spread(statistics.median(values), min(values), max(values), len(values))


def rate(work: float, action: Callable[[], object]) -> Callable[[], float]:
    """`work` per second of one `action`, as `measure` wants it."""

    def once() -> float:
        started = time.perf_counter()
        action()
        return work / (time.perf_counter() - started)

    return once


def measured(
    name: str, spread: Spread, method: str, by_threads: tuple[tuple[int, float], ...] = ()
) -> Figure:
    """The figure called `name`, as measured now on this machine."""
    return Figure(
        spread.median,
        FIGURE_UNITS[name],
        Provenance.MEASURED,
        spread.low,
        spread.high,
        source=f"measured on this machine by moeprof {__version__}, {date.today().isoformat()}",
        verified=True,
        method=f"{method}; median, {spread.ends} of {spread.rounds}",
        by_threads=by_threads,
    )


def reported(name: str, value: float, source: str) -> Figure:
    """The figure called `name`, as the system says it."""
    return Figure(value, FIGURE_UNITS[name], Provenance.SPECIFIED, source=source, verified=True)
