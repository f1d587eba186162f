"""A chart as data: values in their own units, which the page's charting library draws.

Nothing here is a place on a screen. Scales, ticks and lettering are the library's, Observable
Plot; `page/scripts/chart.js` hands it what `chart_data` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

SHARE, RATIO = "%", "\u00d7"  # units that a script writes by rules of their own


@dataclass(frozen=True)
class Measure:
    """An axis: what is measured, and how its values are written.

    `scale` is linear, log or log2, whose ticks are powers of two. `unit` is SHARE for shares of 1,
    RATIO for a value over a mean, or a word that follows the number. An end left open is that of
    the values.
    """

    label: str
    unit: str = ""
    scale: str = "linear"
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Series:
    """Values of one colour, which the legend switches on and off.

    `style` is line, dashed, dots, stems (dots on lines from the start of the axis) or bars; `hue`
    picks from the page's colours. `points` are (x, y), or (x, y, low, high) where the value has a
    band. `words` say more of each point. A series with a `view` is shown when that is chosen.
    """

    name: str
    hue: str
    points: Sequence[tuple[float, ...]]
    style: str = "line"
    words: Sequence[str] = ()
    view: str = ""


@dataclass(frozen=True)
class Mark:
    """A vertical line with words beside it: in a chart at a value of x, over bars from 0 to 1."""

    at: float
    text: str


@dataclass(frozen=True)
class SecondAxis:
    """Other units of y, to the right: (y, text) of each tick."""

    label: str
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Chart:
    """Series over two axes.

    The pointer reads all series at the nearest x, or with `nearest` the one point that is nearest.
    `pick` is a value of x whose numbers stand below, until the reader picks another. `alt` is the
    chart in words, for who does not see it or runs no scripts; `choice` says what its views choose
    between.
    """

    kind: ClassVar[str] = "chart"
    id: str
    title: str
    alt: str
    x: Measure
    y: Measure
    series: Sequence[Series]
    right: SecondAxis | None = None
    marks: Sequence[Mark] = ()
    nearest: bool = False
    pick: float | None = None
    caption: str = ""
    choice: str = "What to show"


def chart_data(chart: Chart) -> dict[str, Any]:
    """What the script needs, fit for JSON; keys left out are empty."""
    data = {
        "title": chart.title,
        "x": _filled(vars(chart.x)),
        "y": _filled(vars(chart.y)),
        "series": [_series(series) for series in chart.series],
        "marks": [[_short(mark.at), mark.text] for mark in chart.marks],
        "nearest": chart.nearest,
        "choice": chart.choice,
        "pick": chart.pick,
    }
    if chart.right:
        ticks = [[_short(at), text] for at, text in chart.right.ticks]
        data["right"] = {"label": chart.right.label, "ticks": ticks}
    return _filled(data)


def _series(series: Series) -> dict[str, Any]:
    points = [[_short(value) for value in point] for point in series.points]
    return _filled({**vars(series), "points": points, "words": list(series.words)})


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty; 0 is a value."""
    return {key: value for key, value in values.items() if value or type(value) in (int, float)}


def _short(value: float) -> float | int:
    """Six digits: more than a figure or a person can tell apart, and a third of the bytes."""
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() else short
