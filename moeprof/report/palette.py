"""Colours and lettering of the PNG figures."""

from __future__ import annotations

BLUE, ORANGE, PALE, SAND, GREY = "#1f6fa8", "#cf5f12", "#86bce0", "#a7a39a", "#8a8f94"
OLIVE = "#c9b458"
INK, SOFT, RULE, ROOM = "#1d2023", "#5d6369", "#dedbd3", "#5b9c78"
HUES = {"a": BLUE, "b": ORANGE, "c": PALE, "d": SAND, "e": OLIVE}
STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "hatch.linewidth": 0.6,
}
