"""Figures of load: imbalance of a step by its tokens, beside a router that is even."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeprof.report.cache_figures import plain
from moeprof.report.contents import ReportContents
from moeprof.report.palette import BLUE, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_step_imbalance(figure: Figure, contents: ReportContents) -> bool:
    """Mean and 95th percentile of a step's imbalance over experts, and over GPUs."""
    loads = [(contents.load, "experts", BLUE), (contents.gpu_load, "GPUs", ORANGE)]
    shown = [(load, what, hue) for load, what, hue in loads if load and load.per_step]
    if not shown:
        return False
    axes = figure.add_subplot()
    for load, what, hue in shown:
        name = what if load.gpus is None else f"{load.gpus} {what}, experts in order of id"
        sizes = [step.tokens for step in load.per_step]
        means = [step.imbalance for step in load.per_step]
        axes.plot(sizes, means, "o-", c=hue, ms=4, label=name)
        p95 = [step.p95 for step in load.per_step]
        axes.fill_between(sizes, means, p95, fc=hue, alpha=0.15, lw=0)
        even = [step.even for step in load.per_step]
        axes.plot(sizes, even, "--", c=hue, lw=1, label=f"{what}, even router")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_ylim(top=2 * max(step.p95 for load, _, _ in shown for step in load.per_step))
    axes.set(xlabel="decode tokens of a step", ylabel="max / mean load of a layer, up to p95")
    axes.set_title(f"Imbalance of one step, {plain(contents.recorded.name)}")
    axes.grid(axis="y")
    axes.legend(loc="upper right", ncols=2)
    return True
