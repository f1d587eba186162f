"""What a section of the page is made of: data only. `page/blocks.html` draws each kind.

Charts stand in `charts.py`. Places on the axes of bars and heatmaps run from 0 to 1, so that they
stretch with the page while their text does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import ClassVar, TypeAlias

from moeprof.report.charts import Chart, Mark

Cell: TypeAlias = str | int
GAP = "gap"  # the hue of a part that is not drawn, before a bar that does not begin at 0


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis; a minor one is left out on a narrow page."""

    at: float
    text: str
    minor: bool = False


@dataclass(frozen=True)
class Axis:
    """What is measured, with its unit, and where the labels stand."""

    label: str
    ticks: Sequence[Tick]


@dataclass(frozen=True)
class HeatView:
    """One choice of what the heatmap shows. Images are data URIs, `load` [layers][experts]."""

    name: str
    light: str
    dark: str
    load: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Heatmap:
    """Load of every expert of every layer, one view at a time."""

    kind: ClassVar[str] = "heatmap"
    id: str
    title: str
    alt: str
    layers: Sequence[int]
    experts: int
    views: Sequence[HeatView]
    x: Axis
    y: Axis
    scale: Axis
    height: int
    caption: str = ""


@dataclass(frozen=True)
class Part:
    """A piece of a bar: its share of the axis and what it is."""

    name: str
    hue: str
    share: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A bar of parts. `verdict` is what to conclude; `good` colours it, None: no colour."""

    name: str
    parts: Sequence[Part]
    verdict: str
    good: bool | None


@dataclass(frozen=True)
class Bars:
    """Horizontal stacked bars on one axis, with vertical lines across all."""

    kind: ClassVar[str] = "bars"
    id: str
    title: str
    alt: str
    bars: Sequence[Bar]
    axis: Axis
    marks: Sequence[Mark]
    caption: str = ""

    @property
    def wide(self) -> bool:
        """Whether names need more room than a word takes."""
        return any(len(bar.name) > 9 for bar in self.bars)

    @property
    def legend(self) -> list[tuple[str, str]]:
        """(name, hue) of every kind of part but gaps, in order of first use."""
        parts = (part for bar in self.bars for part in bar.parts if part.hue != GAP)
        return list(dict.fromkeys((part.name, part.hue) for part in parts))


@dataclass(frozen=True)
class Table:
    """Numbers behind a figure. Folded away unless `open`; units stand in the headings."""

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    open: bool = False


@dataclass(frozen=True)
class Terms:
    """Words and what they mean."""

    kind: ClassVar[str] = "terms"
    terms: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Command:
    """A line for a shell, with a button that copies it."""

    kind: ClassVar[str] = "command"
    title: str
    command: str
    note: str = ""


Block: TypeAlias = Chart | Heatmap | Bars | Table | Terms | Command


@dataclass(frozen=True)
class Section:
    """One part of the page: what it says in sentences, then what shows it."""

    id: str
    title: str
    lead: Sequence[str]
    blocks: Sequence[Block]


def axis_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `wanted`: 1, 2 or 5 times a power of ten apart."""
    span = max(high - low, 1e-9)
    power = 10.0 ** floor(log10(span / wanted))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(span / s - wanted))
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def name_ticks(names: Sequence[object], wanted: int) -> list[Tick]:
    """Names of cells side by side, each at its cell's middle, at most `wanted` of them."""
    least = len(names) / wanted
    step = next((s for s in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64) if s >= least), ceil(least))
    return [
        Tick((place + 0.5) / len(names), str(names[place]), minor=order % 2 == 1)
        for order, place in enumerate(range(0, len(names), step))
    ]
