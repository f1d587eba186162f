"""Figures of projected speed: memory, operations, levers, Pareto front, cost, load, routing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moeprof.projection import DeploymentProjection
from moeprof.quantity import Quantity
from moeprof.report.cache_figures import plain
from moeprof.report.contents import ReportContents
from moeprof.report.palette import BLUE, GREY, HUES, INK, ORANGE, PALE, ROOM, SAND
from moeprof.report.projected_words import deployed, digits, load_words, split_name
from moeprof.report.projecting import ProjectionStudy
from moeprof.report.sections.memory import PIECES
from moeprof.report.sections.speed import OPERATION_PIECES
from moeprof.report.sections.trade_offs import (
    fitting,
    front_of,
    gpu_tok_s,
    high_end,
    low_end,
    usd,
    user_tok_s,
)
from moeprof.report.wording import GIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SPLIT_COLOURS = (BLUE, ORANGE, PALE, SAND)


def draw_projected_memory(figure: Figure, contents: ReportContents) -> bool:
    """One bar a split: what its fullest GPU holds under the load, against the card."""
    study = contents.projection
    if study is None:
        return False
    figure.set_size_inches(8.6, 3.8)
    axes = figure.add_subplot()
    at = study.traffic.concurrency
    rows = [next(row for row in line if row.concurrency == at) for line in study.splits]
    pieces = {name: (HUES[hue], classes) for name, (hue, classes) in PIECES.items()}
    pieces["KV and states of the requests"] = (ROOM, ("kv", "state"))
    sizes = {
        name: (colour, [sum(row.memory[c] for c in classes) / GIB for row in rows])
        for name, (colour, classes) in pieces.items()
    }
    _stack(axes, [split_name(row) for row in rows], sizes)
    capacity = rows[0].ledger.capacity.value / GIB
    usable = capacity - rows[0].ledger.classes["reserve"].value / GIB
    top = axes.get_xaxis_transform()
    for place, word, side in ((usable, "usable ", "right"), (capacity, " card", "left")):
        axes.axvline(place, c=INK, lw=1, ls="--" if side == "right" else "-")
        axes.text(place, 1.01, word, transform=top, ha=side, va="bottom", fontsize=9)
    axes.set(xlabel=f"GiB on the fullest GPU, {load_words(study)}")
    axes.set_title(plain(f"Memory by split: {_where(study)}"), pad=22)
    figure.legend(loc="outside lower center", ncols=3)
    return True


def draw_operations(figure: Figure, contents: ReportContents) -> bool:
    """Milliseconds of an output token by operation, a bar a number of requests at a time."""
    study = contents.projection
    if study is None:
        return False
    axes = figure.add_subplot()
    chosen = study.chosen.ledger.parallelism
    rows = next(line for line in study.splits if line[0].ledger.parallelism == chosen)
    sizes = {
        name: (
            HUES.get(hue, ROOM),
            [sum(row.operations.get(each, 0.0) for each in operations) for row in rows],
        )
        for name, (hue, operations) in OPERATION_PIECES.items()
    }
    _stack(axes, [f"{row.concurrency:,}" for row in rows], sizes)
    axes.set(xlabel="ms of an output token", ylabel="requests at a time")
    axes.set_title(plain(f"Time by operation: {deployed(study)}"))
    figure.legend(loc="outside lower center", ncols=3)
    return True


def draw_levers(figure: Figure, contents: ReportContents) -> bool:
    """A tornado: each thing changed alone."""
    study = contents.projection
    if study is None or study.chosen.tpot_ms is None:
        return False
    axes = figure.add_subplot()
    here, levers = study.chosen.tpot_ms.value, study.levers
    for row, lever in enumerate(levers):
        less, more = min(here, lever.fast_ms), max(here, lever.slow_ms)
        axes.barh(row, here - less, left=less, height=0.56, color=BLUE)
        axes.barh(row, more - here, left=here, height=0.56, color=ORANGE)
        for place, words, side in ((less, lever.fast, "right"), (more, lever.slow, "left")):
            axes.annotate(
                words, (place, row), xytext=(-5 if side == "right" else 5, 0),
                textcoords="offset points", ha=side, va="center", fontsize=8.5,
            )  # fmt: skip
    axes.axvline(here, c=INK, lw=1)
    axes.set_yticks(range(len(levers)), [lever.name for lever in levers])
    axes.invert_yaxis()
    ends = [end for lever in levers for end in (lever.fast_ms, lever.slow_ms)]
    room = 0.22 * (max(ends) - min(ends))
    axes.set_xlim(min(ends) - room, max(ends) + room)
    axes.set(xlabel=f"ms of an output token (projected: {digits(here)})")
    axes.set_title(plain(f"What it hangs on: {deployed(study)}"))
    return True


def draw_pareto(figure: Figure, contents: ReportContents) -> bool:
    """Tokens/s a GPU against tokens/s a user, a line a split, with the front."""
    study = contents.projection
    if study is None:
        return False
    axes = figure.add_subplot()
    _draw_splits(axes, study, lambda row: gpu_tok_s(row, study))
    front = front_of(study)
    axes.scatter(
        [user_tok_s(row) for row in front], [gpu_tok_s(row, study) for row in front],
        s=70, facecolors="none", edgecolors=INK, lw=1.1, zorder=3, label="Pareto front",
    )  # fmt: skip
    axes.set(ylim=(0, None), ylabel="output tokens/s a GPU")
    _finish(axes, f"Throughput against speed: {_where(study)}")
    return True


def draw_cost(figure: Figure, contents: ReportContents) -> bool:
    """USD of a million output tokens against tokens/s a user; needs a price."""
    study = contents.projection
    if study is None or study.chosen.cost_per_million_tokens is None:
        return False
    axes = figure.add_subplot()
    _draw_splits(axes, study, usd)
    axes.set(yscale="log", ylabel="USD a million output tokens")
    axes.yaxis.set_major_formatter("{x:g}")
    _finish(axes, f"Cost against speed: {_where(study)}")
    return True


def draw_load_curves(figure: Figure, contents: ReportContents) -> bool:
    """TPOT and TTFT with their bands by requests at a time, and TTFT by rate where simulated."""
    study = contents.projection
    if study is None:
        return False
    panels = figure.subplots(1, 3 if study.arrivals else 2)
    figure.set_size_inches(12.4 if study.arrivals else 8.6, 4.2)
    _draw_band(panels[0], study, lambda row: row.tpot_ms, "TPOT (ms)")
    _draw_band(panels[1], study, lambda row: row.ttft_ms, "TTFT (ms)")
    panels[1].set(yscale="log")
    panels[1].yaxis.set_major_formatter("{x:,g}")
    if study.arrivals:
        _draw_arrivals(panels[2], study)
    figure.suptitle(
        plain(f"Latency by load, 80 % bands: {deployed(study)}"), x=0.01, ha="left", weight="bold",
        fontsize=10.5,
    )  # fmt: skip
    return True


def draw_routing_sensitivity(figure: Figure, contents: ReportContents) -> bool:
    """Experts that the busiest GPU reads, and TPOT against even routing."""
    study = contents.projection
    if study is None or not study.routed:
        return False
    reads, speeds = figure.subplots(1, 2)
    even = {step.concurrency: step.tpot_ms for step in study.routed if step.routing == "even"}
    names = list(dict.fromkeys(step.routing for step in study.routed))
    for name, colour in zip(names, (GREY, BLUE, ORANGE), strict=False):
        steps = [step for step in study.routed if step.routing == name]
        at = [step.concurrency for step in steps]
        style = "--" if name == "even" else "-"
        reads.plot(at, [s.most_distinct for s in steps], style, c=colour, label=name)
        change = [100 * (s.tpot_ms / even[s.concurrency] - 1) for s in steps]
        speeds.plot(at, change, style, c=colour, label=name)
    for axes, label in ((reads, "experts read by the busiest GPU"), (speeds, "TPOT over even (%)")):
        axes.set(xscale="log", xlabel="requests at a time", ylabel=label)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(axis="y")
    reads.set(ylim=(0, None))
    reads.legend()
    figure.suptitle(
        plain(f"Routing sensitivity: {_where(study)}"), x=0.01, ha="left", weight="bold",
        fontsize=10.5,
    )  # fmt: skip
    return True


def _stack(axes: Axes, names: Sequence[str], sizes: dict[str, tuple[str, list[float]]]) -> None:
    """Horizontal bars of pieces, the first name on top."""
    left = np.zeros(len(names))
    for name, (colour, widths) in sizes.items():
        if any(widths):
            axes.barh(names, widths, left=left, height=0.6, color=colour, label=name)
        left += np.array(widths)
    axes.invert_yaxis()


def _draw_splits(
    axes: Axes, study: ProjectionStudy, value: Callable[[DeploymentProjection], float]
) -> None:
    for line, colour in zip(study.splits, _SPLIT_COLOURS, strict=False):
        rows = fitting(line)
        if not rows:
            continue
        users = [user_tok_s(row) for row in rows]
        values = [value(row) for row in rows]
        axes.plot(users, values, "o-", ms=4, c=colour, label=split_name(line[0]))
        if line[0].ledger.parallelism != study.chosen.ledger.parallelism:
            continue  # numbers of lines that lie close would hide each other
        for row, user, each in zip(rows, users, values, strict=True):
            axes.annotate(
                f"{row.concurrency:,}", (user, each), xytext=(4, 4), textcoords="offset points",
                fontsize=7.5, color=colour,
            )  # fmt: skip
    axes.set(xlim=(0, None), xlabel="output tokens/s a user (numbers: requests at a time)")


def _draw_band(
    axes: Axes,
    study: ProjectionStudy,
    quantity: Callable[[DeploymentProjection], Quantity | None],
    label: str,
) -> None:
    rows = [(row.concurrency, each) for row in study.load if (each := quantity(row)) is not None]
    at = [concurrency for concurrency, _ in rows]
    low, high = ([end(each) for _, each in rows] for end in (low_end, high_end))
    axes.fill_between(at, low, high, fc=BLUE, alpha=0.15, lw=0)
    axes.plot(at, [each.value for _, each in rows], "o-", ms=3.5, c=BLUE)
    axes.set(xscale="log", xlabel="requests at a time", ylabel=label)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y")


def _draw_arrivals(axes: Axes, study: ProjectionStudy) -> None:
    rates = [each.load.rate or 0.0 for each in study.arrivals]
    for level, colour in (("p50", PALE), ("p90", BLUE), ("p99", ORANGE)):
        values = [each.ttft_ms[level] or 0.0 for each in study.arrivals]
        axes.plot(rates, values, "o-", ms=3.5, c=colour, label=level)
    axes.set(ylim=(0, None), xlabel="requests/s (Poisson)", ylabel="TTFT (ms)")
    axes.grid(axis="y")
    axes.legend()


def _finish(axes: Axes, title: str) -> None:
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.set_title(plain(title))
    axes.legend()


def _where(study: ProjectionStudy) -> str:
    ledger = study.chosen.ledger
    return f"{ledger.model} in {ledger.precision.upper()} on {ledger.hardware}"
