"""Figures of specialization: domains apart by layer, from each other, and their specialists."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moeprof.report.cache_figures import plain
from moeprof.report.contents import ReportContents
from moeprof.report.palette import BLUE, GREY, INK, ORANGE
from moeprof.report.text.layout import clipped
from moeprof.report.wording import counted, times

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME = 22  # letters of a domain


def draw_domains(figure: Figure, contents: ReportContents) -> bool:
    """Divergence between domains in each layer with its interval, over what chance gives."""
    from matplotlib.ticker import MaxNLocator

    result = contents.specialization
    if result is None:
        return False
    at = [layer.layer for layer in result.layers]
    apart = np.array([layer.specialization for layer in result.layers])
    null = np.array([layer.null for layer in result.layers])
    ends = np.array([[layer.interval.low, layer.interval.high] for layer in result.layers])
    axes = figure.add_subplot()
    axes.fill_between(
        at,
        0,
        [layer.null_p95 for layer in result.layers],
        color=GREY,
        alpha=0.25,
        lw=0,
        step="mid",
        label="95 % of shuffles below",
    )
    axes.plot(at, null, c=GREY, lw=1.2, ls="--", label="labels shuffled, mean")
    axes.vlines(at, ends[:, 0].clip(0), ends[:, 1].clip(0), color=BLUE, lw=1.4, alpha=0.6)
    axes.plot(at, apart, "o", c=BLUE, ms=4, label="between domains, 95 % interval")
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.set(xlabel="layer", ylabel="divergence (bit)", ylim=(0, None))
    names = counted(len(result.domains), "domain")
    axes.set_title(f"Specialization, {names}, {plain(contents.recorded.name)}", pad=26)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.1)
    return True


def draw_domain_distances(figure: Figure, contents: ReportContents) -> bool:
    """Each two of three or more domains, how far apart beyond chance."""
    result = contents.specialization
    if result is None or len(result.domains) < 3:
        return False
    apart = np.array(result.distances)
    names = [_drawn(name) for name in result.domains]
    axes = figure.add_subplot()
    image = axes.imshow(
        np.where(np.eye(len(names)), np.nan, apart), cmap="Blues", vmin=0, aspect="auto"
    )
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set_yticks(range(len(names)), names)
    if len(names) <= 10:
        middle = max(float(apart.max()), 1e-9) / 2
        for (row, column), value in np.ndenumerate(apart):
            if row != column:
                colour = "white" if value > middle else INK
                axes.text(column, row, f"{value:.3f}", ha="center", va="center", c=colour, size=8)
    axes.set_title("Divergence of two domains beyond chance, mean over layers")
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    bar.set_label("bit")
    bar.outline.set_visible(False)
    return True


def draw_specialists(figure: Figure, contents: ReportContents) -> bool:
    """The experts that matter most to the divergence: used in their domain, and elsewhere."""
    result = contents.specialization
    if result is None or not result.specialists:
        return False
    shown = result.specialists[:15]
    names = [f"{_drawn(s.domain)}, L{s.layer} E{s.expert}" for s in shown]
    rows = np.arange(len(shown))
    here = np.array([100 * one.share for one in shown])
    elsewhere = np.array([100 * one.share_elsewhere for one in shown])
    axes = figure.add_subplot()
    axes.hlines(rows, elsewhere, here, color=GREY, lw=1.2)
    axes.plot(here, rows, "o", c=BLUE, ms=6, label="of the domain's tokens")
    axes.plot(elsewhere, rows, "o", c=ORANGE, ms=6, label="of all other tokens")
    for row, one in enumerate(shown):
        if one.lift is not None:
            axes.text(here[row] + 0.8, row, times(one.lift), va="center", size=8.5)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.set(xlabel="tokens that choose the expert (%)", xlim=(0, 1.12 * float(here.max())))
    axes.set_title("Specialists: domain, layer and expert", pad=26)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.1)
    return True


def _drawn(name: str) -> str:
    """A domain's name in letters that the font has, a box for each that it lacks."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    return plain(
        "".join(c if ord(c) in known else "\N{WHITE SQUARE}" for c in clipped(name, _NAME))
    )
