"""The figures of affinity as PNG: who goes with whom, and what a layer tells of the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis import AffinityResult
from moeprof.analysis.affinity import LayerTransition
from moeprof.report.cache_figures import plain
from moeprof.report.contents import ReportContents
from moeprof.report.palette import BLUE, GREY, INK, ORANGE, PALE
from moeprof.report.pixels import LIGHT, UNUSED_LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OCTAVES = 3.0  # lift beyond 8 times, or below an eighth, has the same colour


def draw_coactivation_matrix(figure: Figure, contents: ReportContents) -> bool:
    """Lift of every pair of the layer of largest modularity, experts in order of community."""
    from matplotlib.colors import LinearSegmentedColormap

    affinity = contents.affinity
    if affinity is None or affinity.shown_lift is None:
        return False
    layer = next(one for one in affinity.per_layer if one.layer == affinity.shown_layer)
    order, ends = _by_community(np.array(layer.community))
    lift = affinity.shown_lift[np.ix_(order, order)]
    octaves = np.full(lift.shape, np.nan)
    np.log2(lift, out=octaves, where=lift > 0)
    colours = LinearSegmentedColormap.from_list("lift", list(LIGHT)).with_extremes(bad=UNUSED_LIGHT)
    figure.set_size_inches(6.6, 5.8)
    axes = figure.add_subplot()
    image = axes.imshow(
        octaves, cmap=colours, vmin=-_OCTAVES, vmax=_OCTAVES, interpolation="nearest"
    )
    for end in ends[:-1]:
        axes.axhline(end - 0.5, c=INK, lw=0.6)
        axes.axvline(end - 0.5, c=INK, lw=0.6)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set(xlabel="experts by community, the largest first", ylabel="experts")
    axes.set_title(
        f"Experts chosen together, layer {layer.layer}, {plain(contents.recorded.name)}\n"
        f"modularity {layer.modularity:.2f}; mean of layers {affinity.modularity or 0:.2f}, "
        f"by chance {affinity.modularity_null or 0:.2f}",
        fontsize=10,
    )
    bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=30)
    bar.set_ticks([-3, -2, -1, 0, 1, 2, 3], labels=["≤ ⅛", "¼", "½", "1", "2", "4", "≥ 8"])
    bar.set_label("times as often together as by chance (black: never)")
    bar.outline.set_visible(False)
    return True


def draw_next_layer(figure: Figure, contents: ReportContents) -> bool:
    """What each layer tells of the next: guesses that are right, and bits."""
    affinity = contents.affinity
    if affinity is None or affinity.next_layer_top1 is None:
        return False
    figure.set_size_inches(8.6, 6.0)
    shares, bits = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_guesses(shares, affinity)
    _draw_bits(bits, affinity.transitions)
    shares.set_title(f"What a layer tells of the next, {plain(contents.recorded.name)}", pad=26)
    return True


def _draw_guesses(axes: Axes, affinity: AffinityResult) -> None:
    moves, k = affinity.transitions, affinity.top_k
    layers = [move.layer for move in moves]
    lines = (
        ("top1", BLUE, "-", "likeliest successor"),
        ("top1_popularity", BLUE, ":", "most popular expert"),
        ("recall_k", ORANGE, "-", f"{k} likeliest"),
        ("recall_k_popularity", ORANGE, ":", f"{k} most popular"),
    )
    for name, colour, style, words in lines:
        values = [getattr(move, name) for move in moves]
        percent = [np.nan if value is None else 100 * value for value in values]
        axes.plot(layers, percent, style, c=colour, lw=1.8, label=words)
    axes.set(ylim=(0, 100), ylabel="found in the next layer (%)")
    axes.grid(axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.1)


def _draw_bits(axes: Axes, moves: list[LayerTransition]) -> None:
    """Bars in parts: counting alone, what the request tells, what the token's experts tell."""
    from matplotlib.ticker import MaxNLocator

    layers = [move.layer for move in moves]
    bias = np.array([move.information_bias_bits for move in moves])
    null = np.array([move.information_null_bits for move in moves])
    excess = np.array([move.information_excess_bits for move in moves])
    axes.bar(layers, bias, fc=GREY, label="counting alone")
    axes.bar(layers, np.maximum(null - bias, 0), bottom=bias, fc=PALE, label="the request")
    axes.bar(layers, np.maximum(excess, 0), bottom=null, fc=BLUE, label="the token's experts")
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.set(xlabel="layer", ylabel="bits on a next expert")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.1)


def _by_community(member: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Experts, those of the largest community first, and where each community ends."""
    sizes = np.bincount(member)
    rank = np.argsort(np.argsort(-sizes, kind="stable"))
    order = np.argsort(rank[member], kind="stable")
    return order, np.cumsum(np.sort(sizes)[::-1])
