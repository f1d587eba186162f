"""Figures of caches and of offload: policies, speed by GPU memory, where the time goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moeprof.report.contents import ReportContents
from moeprof.report.offloading import speeds_by_policy
from moeprof.report.palette import BLUE, HUES, INK, ORANGE, ROOM
from moeprof.report.policies import curves_of
from moeprof.report.sections.offload import RESOURCES
from moeprof.report.sections.policies import HUES as POLICY_HUES
from moeprof.report.sections.policies import SCOPES, cycles, pool_size
from moeprof.report.wording import GIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_policies(figure: Figure, contents: ReportContents) -> bool:
    """Hit ratio against the share resident, a line a policy and a panel a scope."""
    if not contents.policies:
        return False
    panels = figure.subplots(1, len(contents.policies), sharey=True, squeeze=False)[0]
    for axes, (scope, replays) in zip(panels, contents.policies.items(), strict=True):
        experts = pool_size(replays)
        for curve, hue in zip(curves_of(replays), POLICY_HUES, strict=True):
            share, hits = zip((0.0, 0.0), *curve.points(experts), strict=True)
            axes.plot(
                100 * np.array(share), 100 * np.array(hits), c=HUES[hue], lw=2, label=curve.policy
            )
        for slots, words in cycles(replays):
            axes.axvline(100 * slots / experts, c=INK, lw=0.9, ls=":")
            axes.text(100 * slots / experts + 1.2, 99, words.replace(": ", ":\n"), va="top", size=9)
        axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="share of all experts resident (%)")
        axes.set_title(SCOPES[scope], pad=8)
        axes.grid(axis="y")
    panels[0].set_ylabel("hit ratio (% of reads)")
    panels[-1].legend(loc="lower right")
    figure.suptitle(
        f"Cache policies, {plain(contents.recorded.name)}", x=0.01, ha="left", weight="bold"
    )
    return True


def draw_offload(figure: Figure, contents: ReportContents) -> bool:
    """Decode speed by GPU memory with its band, and the shares of time below."""
    plans = contents.offload
    if not plans:
        return False
    figure.set_size_inches(8.6, 6.4)
    speeds, shares = figure.subplots(2, 1, height_ratios=(3, 2))
    sizes = np.array([plan.memory.vram_bytes / GIB for plan in plans])
    low, high = ([getattr(plan, f"tok_s_{end}") for plan in plans] for end in ("low", "high"))
    speeds.fill_between(sizes, low, high, fc=BLUE, alpha=0.15, lw=0, label="band of the best")
    for (name, values), hue in zip(speeds_by_policy(plans).items(), "ca", strict=True):
        speeds.plot(sizes, values, "o-", c=HUES[hue], ms=4, label=name)
    speeds.plot(sizes, [plan.tok_s_limit for plan in plans], c=ORANGE, label="no policy exceeds")
    speeds.set(ylim=(0, None), xlabel="GPU memory used (GiB)", ylabel="tokens/s, one request")
    where = f"{plans[0].model} in {plans[0].precision} on {plans[0].hardware}"
    speeds.set_title(plain(f"Offload: {where}"), pad=26)
    speeds.grid(axis="y")
    speeds.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.1)
    _draw_shares(shares, contents)
    return True


def _draw_shares(axes: Axes, contents: ReportContents) -> None:
    """One stacked bar of the critical path for each size."""
    plans = contents.offload
    names = [f"{plan.memory.vram_bytes / GIB:.3g} GiB" for plan in plans]
    left = np.zeros(len(plans))
    for key, (name, hue) in RESOURCES.items():
        width = np.array([100 * plan.share[key] for plan in plans])
        if width.any():
            axes.barh(names, width, left=left, height=0.6, color=HUES.get(hue, ROOM), label=name)
        left += width
    axes.set(xlim=(0, 100), xlabel="share of the critical path (%)")
    axes.invert_yaxis()
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, borderaxespad=0.1)


def plain(text: str) -> str:
    """`text` without what Matplotlib reads as mathematics."""
    return text.replace("$", r"\$")
