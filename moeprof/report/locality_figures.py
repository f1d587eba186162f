"""Figures of locality: distinct experts by batch and chunk, and how fast reuse fades."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moeprof.report.cache_figures import plain
from moeprof.report.contents import ReportContents
from moeprof.report.palette import BLUE, GREY, INK, ORANGE, ROOM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from moeprof.analysis import LocalityResult


def draw_distinct(figure: Figure, contents: ReportContents) -> bool:
    """Distinct experts of a layer by tokens of a step, of a prompt, by chance and evenly."""
    locality = contents.locality
    if locality is None:
        return False
    axes = figure.add_subplot()
    sizes = [*locality.distinct_by_batch]
    axes.plot(sizes, [*locality.distinct_by_batch.values()], "o-", c=BLUE, ms=4, label="decode")
    bands = [locality.distinct_intervals[size] for size in sizes if locality.distinct_intervals]
    if bands:
        low, high = [band.low for band in bands], [band.high for band in bands]
        axes.fill_between(sizes, low, high, fc=BLUE, alpha=0.18, lw=0)
    if locality.prefill:
        chunks = locality.prefill.distinct_by_chunk
        axes.plot([*chunks], [*chunks.values()], "s-", c=ORANGE, ms=4, label="one prompt, in a row")
    for values, style, name in (
        (locality.distinct_null, "--", "by chance, experts as popular"),
        (locality.distinct_uniform, ":", "even router, N(1-((N-k)/N)$^B$)"),
    ):
        axes.plot([*values], [*values.values()], style, c=GREY, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="tokens of a step", ylabel="distinct experts of a layer", ylim=(0, None))
    axes.set_title(f"Distinct experts, {plain(contents.recorded.name)}")
    axes.grid(axis="y")
    axes.legend(loc="lower right")
    return True


def draw_reuse(figure: Figure, contents: ReportContents) -> bool:
    """Repeat by tokens apart, and local routing consistency by segment."""
    locality = contents.locality
    if locality is None or not locality.repeat_by_lag:
        return False
    left, right = figure.subplots(1, 2)
    lags = [*locality.repeat_by_lag]
    left.plot(lags, 100 * np.array([*locality.repeat_by_lag.values()]), "o-", c=BLUE, ms=4)
    left.axhline(100 * locality.repeat_null, c=GREY, ls="--")
    left.text(lags[-1], 100 * locality.repeat_null, "popularity alone", ha="right", va="bottom")
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter("{x:g}")
    left.set(xlabel="tokens apart", ylabel="experts in common (%)", ylim=(0, None))
    left.set_title("Reuse")
    _draw_segments(right, locality)
    for axes in (left, right):
        axes.grid(axis="y")
    figure.suptitle(f"Locality, {plain(contents.recorded.name)}", x=0.01, ha="left", weight="bold")
    return True


def _draw_segments(axes: Axes, locality: LocalityResult) -> None:
    """SRP beside that of tokens from anywhere."""
    lengths = [segment.tokens for segment in locality.segments]
    axes.plot(lengths, [s.srp for s in locality.segments], "o-", c=ROOM, ms=4, label="in a row")
    nulls = [segment.srp_null for segment in locality.segments]
    axes.plot(lengths, nulls, "--", c=GREY, label="from anywhere")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="tokens of a segment", ylabel="SRP (F1)", ylim=(0, 1))
    axes.set_title("A fixed group of experts", color=INK)
    if lengths:
        axes.legend(loc="upper right")
