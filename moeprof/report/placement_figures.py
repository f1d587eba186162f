"""The figures of a placement as PNG. Each function draws one `PlacementStudy` on one Figure."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from moeprof.errors import InputError
from moeprof.placement.replay import Interval
from moeprof.placement.study import PlacementStudy
from moeprof.report.palette import BLUE, GREY, INK, ORANGE, PALE, ROOM, SAND, SOFT, STYLE
from moeprof.report.pixels import LIGHT
from moeprof.report.wording import GIB, read_bytes
from moeprof.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_COLOURS = (BLUE, ORANGE, ROOM, PALE, SAND, "#7d5aa6", "#b03a48", "#3d7f7a", GREY, "#caa62c")


@dataclass(frozen=True)
class PlacementFigures(Result):
    """What was drawn, and why the rest was not, by what it shows."""

    figures: list[str]
    missing: dict[str, str]


def save_placement_figures(
    study: PlacementStudy, folder: str | Path, *, force: bool = False
) -> PlacementFigures:
    """Write every figure that `study` has data for into `folder`.

    All are drawn before the first is put in its place. Raises InputError where one is there
    already, without `force`.
    """
    folder = Path(folder)
    there = [name for name in PLACEMENT_FIGURES if (folder / name).exists()]
    if there and not force:
        raise InputError(f"{folder / there[0]} exists, it is not overwritten without --force")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, name a folder for the figures")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".figures-", dir=folder) as drafts:
        drawn = []
        for name, draw in PLACEMENT_FIGURES.items():
            figure = draw(study)
            if figure is not None:
                figure.savefig(Path(drafts) / name, metadata={"Software": None})
                drawn.append(name)
        for name in drawn:
            os.replace(Path(drafts) / name, folder / name)
    return PlacementFigures([str(folder / name) for name in drawn], dict(study.missing))


def _figure(width: float = 8.6, height: float = 4.6) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _styled(draw: Callable[[PlacementStudy], Figure | None]) -> Callable[..., Figure | None]:
    """`draw` in the report's style."""

    def styled(study: PlacementStudy) -> Figure | None:
        import matplotlib

        style: Any = STYLE
        with matplotlib.rc_context(rc=style):
            figure = draw(study)
            if figure is not None:
                figure.canvas.draw()
            return figure

    return styled


def _title(study: PlacementStudy) -> str:
    placed = study.placed
    nodes = f" in {placed.nodes} nodes" if placed.nodes > 1 else ""
    name = study.name.replace("$", r"\$")
    return f"{name} on {placed.gpus} GPUs{nodes}, {placed.redundant} redundant"


@_styled
def draw_rank_load(study: PlacementStudy) -> Figure | None:
    """Heatmaps layer x GPU of load over the layer's mean, in order of id and placed."""
    from matplotlib.colors import LinearSegmentedColormap

    figure = _figure(8.6, 4.8)
    panels = figure.subplots(1, 2, sharey=True)
    colours = LinearSegmentedColormap.from_list("load", list(LIGHT))
    for axes, load, name in (
        (panels[0], study.load_before, "experts in order of id"),
        (panels[1], study.load_after, f"placed ({study.placed.solver})"),
    ):
        octaves = np.log2(np.maximum(_over_mean(load), 1 / 64))
        image = axes.imshow(
            octaves, cmap=colours, vmin=-1, vmax=1, aspect="auto", interpolation="nearest"
        )
        axes.set(xlabel="GPU", title=f"{name}: {_over_mean(load).max(axis=1).mean():.2f}")
        axes.title.set_fontsize(10)
        axes.set_xticks(*_ticks(range(study.placed.gpus), 8))
    panels[0].set_yticks(*_ticks(study.placed.layers, 12))
    panels[0].set_ylabel("layer")
    bar = figure.colorbar(image, ax=panels, pad=0.015, aspect=30)
    bar.set_ticks([-1, -0.5, 0, 0.5, 1], labels=["≤ 0.5", "0.7", "1", "1.4", "≥ 2"])
    bar.set_label("load / mean of the layer's GPUs")
    bar.outline.set_visible(False)
    figure.suptitle(
        f"Load of each GPU on the later window, {_title(study)}", x=0.01, ha="left", weight="bold"
    )
    return figure


def _over_mean(load: NDArray[np.float64]) -> NDArray[np.float64]:
    mean = load.mean(axis=1, keepdims=True)
    ratio: NDArray[np.float64] = np.divide(load, mean, out=np.ones_like(load), where=mean > 0)
    return ratio


def _ticks(names: Any, wanted: int) -> tuple[list[int], list[str]]:
    values = list(names)
    places = list(range(0, len(values), max(1, -(-len(values) // wanted))))
    return places, [str(values[place]) for place in places]


@_styled
def draw_layer_imbalance(study: PlacementStudy) -> Figure | None:
    """Imbalance of each layer, in order of id and placed."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(8.6, 4.0)
    axes = figure.add_subplot()
    layers = study.placed.layers
    before, after = (_over_mean(load).max(axis=1) for load in (study.load_before, study.load_after))
    axes.vlines(layers, after, before, color=PALE, lw=1.2)
    axes.plot(layers, before, "o", ms=4.5, c=ORANGE, label="experts in order of id")
    axes.plot(layers, after, "o", ms=4.5, c=BLUE, label=f"placed ({study.placed.solver})")
    axes.axhline(study.eplb_imbalance, c=GREY, ls="--", lw=1.2, label="EPLB's map, mean of layers")
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.set(xlabel="layer", ylabel="imbalance (max / mean of GPUs)")
    axes.set_ylim(1, max(1.1, 1.05 * float(max(before.max(), after.max()))))
    _finish(axes, f"Imbalance on the later window, {_title(study)}")
    return figure


def _finish(axes: Axes, title: str, columns: int = 3) -> None:
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.1)
    axes.set_title(title, pad=26)


@_styled
def draw_redundancy(study: PlacementStudy) -> Figure | None:
    """Imbalance against redundant experts, with what they take on a GPU."""
    sweep = study.sweep
    if sweep is None:
        return None
    figure = _figure(8.6, 4.4)
    axes = figure.add_subplot()
    counts = [row.redundant for row in sweep.rows]
    for name, values, colour in (
        ("what a step waits for / even", [row.step_imbalance for row in sweep.rows], ORANGE),
        ("sum of the window: max / mean", [row.imbalance for row in sweep.rows], BLUE),
    ):
        middle = [value.value for value in values]
        axes.errorbar(
            counts, middle, yerr=_bars(values), fmt="o-", ms=5, lw=1.8, capsize=3, c=colour,
            label=name,
        )  # fmt: skip
    axes.plot(
        counts, [row.imbalance_fit for row in sweep.rows], "o:", ms=4, c=GREY, label="where fitted"
    )
    axes.set_xticks(counts, [_redundancy(sweep.rows[n]) for n in range(len(counts))])
    axes.set(xlabel="redundant experts a layer", ylabel="imbalance")
    axes.set_ylim(bottom=1)
    batch = "steps as recorded" if sweep.batch is None else f"{sweep.batch} requests at a time"
    _finish(axes, f"How many redundant experts? {study.name} on {sweep.gpus} GPUs, {batch}")
    return figure


def _bars(values: Sequence[Interval]) -> list[list[float]]:
    """Below and above each value; nothing where no interval is known."""
    below = [0.0 if v.low is None else v.value - v.low for v in values]
    return [below, [0.0 if v.high is None else v.high - v.value for v in values]]


def _redundancy(row: Any) -> str:
    sizes = row.redundant_bytes_per_gpu
    name = next((n for n in ("fp8", *sizes) if n in sizes), None)
    if name is None:
        return f"{row.redundant}"
    size = sizes[name]
    words = f"{size / GIB:.1f} GiB" if size >= 0.05 * GIB else read_bytes(size)
    return f"{row.redundant}\n{words} a GPU\n({name})" if size else f"{row.redundant}"


@_styled
def draw_between_nodes(study: PlacementStudy) -> Figure | None:
    """Bytes a token from its home node to the nodes of its experts."""
    from matplotlib.colors import LinearSegmentedColormap

    traffic = study.between_nodes
    if traffic is None:
        return None
    figure = _figure(5.6, 4.8)
    axes = figure.add_subplot()
    sent = np.array(traffic.bytes_per_token)
    crossing = np.where(np.eye(traffic.nodes, dtype=bool), np.nan, sent)
    plain = LinearSegmentedColormap.from_list("bytes", ["#ffffff", PALE, BLUE])
    colours = plain.with_extremes(bad="#efede8")
    top = float(np.nanmax(crossing))
    axes.imshow(crossing, cmap=colours, vmin=0, vmax=top, interpolation="nearest")
    for home in range(traffic.nodes):
        for node in range(traffic.nodes):
            dark = home != node and sent[home, node] > 0.6 * top
            axes.text(
                node, home, read_bytes(sent[home, node]), ha="center", va="center",
                color="#ffffff" if dark else INK if home != node else SOFT, fontsize=9,
            )  # fmt: skip
    axes.set_xticks(range(traffic.nodes))
    axes.set_yticks(range(traffic.nodes))
    axes.set(xlabel="node of the experts", ylabel="home node of the token")
    axes.set_title("Bytes a token between nodes, there and back")
    axes.text(
        0, -0.2, "grey: stays in the node; requests dealt to the GPUs in turn",
        transform=axes.transAxes, fontsize=8.5, color=SOFT,
    )  # fmt: skip
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


@_styled
def draw_online(study: PlacementStudy) -> Figure | None:
    """Step imbalance over time, with rebalances marked and their moves beneath."""
    online = study.online
    if online is None:
        return None
    figure = _figure(8.6, 5.2)
    axes, beneath = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    edges = np.append(online.starts, online.steps)
    for values, colour, name, width in (
        (online.linear, ORANGE, "experts in order of id", 1.6),
        (online.static, GREY, "first map kept", 1.6),
        (online.online, BLUE, "solved anew", 2.2),
    ):
        axes.stairs(values, edges, color=colour, lw=width, label=name, baseline=None)
    taken = [made for made in online.rebalances if made.taken]
    for made in taken:
        axes.axvline(made.step, c=PALE, lw=0.9, zorder=0)
    beneath.bar(
        [made.step for made in taken], [made.moves.slots for made in taken],
        width=0.25 * online.interval, color=BLUE,
    )  # fmt: skip
    beneath.set(xlabel="step", ylabel="experts moved")
    beneath.grid(axis="y")
    beneath.set_axisbelow(True)
    axes.set(ylabel="what steps wait for / even")
    axes.set_ylim(bottom=1)
    words = f"every {online.interval:,} steps"
    _finish(axes, f"Rebalancing {words}, {_title(study)}")
    return figure


@_styled
def draw_coactivation(study: PlacementStudy) -> Figure | None:
    """The strongest pairs of a layer's experts, by community and by GPU."""
    graph = study.graph
    if graph is None or not graph.edges:
        return None
    figure = _figure(9.4, 5.0)
    panels = figure.subplots(1, 2)
    row = study.placed.layers.index(graph.layer)
    held = study.placed.plan.placement.copies_on_rank[row] > 0
    homes = held.argmax(axis=0)
    several = held.sum(axis=0) > 1
    places = _layout(graph.experts, graph.edges)
    size = 30 + 260 * np.array(graph.share) / max(graph.share)
    for axes, group, name in (
        (panels[0], np.array(graph.community), f"communities (modularity {graph.modularity:.2f})"),
        (panels[1], homes, f"GPU of {study.placed.gpus}"),
    ):
        for a, b, lift in graph.edges:
            axes.plot(
                *places[[a, b]].T, c=SAND, lw=0.35 + 0.25 * min(lift, 6), alpha=0.55, zorder=1
            )
        colours = [_group_colour(int(value), study.placed.gpus) for value in group]
        ring = [INK if many else "#ffffff" for many in several]
        axes.scatter(*places.T, s=size, c=colours, edgecolors=ring, linewidths=0.9, zorder=2)
        for expert, colour in enumerate(colours):
            axes.annotate(
                str(expert), places[expert], ha="center", va="center", fontsize=6,
                color="#ffffff" if _is_dark(colour) else INK,
            )  # fmt: skip
        axes.set_title(name, fontsize=10)
        axes.set_axis_off()
    figure.suptitle(
        f"Experts used together, layer {graph.layer}, {_title(study)}; dark ring: on several GPUs",
        x=0.01, ha="left", weight="bold", fontsize=10.5,
    )  # fmt: skip
    return figure


def _group_colour(value: int, groups: int) -> Any:
    """One of the house's colours, or of a wheel where there are more groups."""
    if groups <= len(_COLOURS):
        return _COLOURS[value % len(_COLOURS)]
    from matplotlib import colormaps

    return colormaps["turbo"](0.08 + 0.84 * (value % groups) / groups)


def _is_dark(colour: Any) -> bool:
    """Whether white is easier to read on it than ink (ITU-R BT.601 luma)."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.55


def _layout(experts: int, edges: list[tuple[int, int, float]]) -> NDArray[np.float64]:
    """[experts, 2] by springs, unconnected ones on a ring outside."""
    import networkx as nx

    graph = nx.Graph()
    graph.add_weighted_edges_from(edges)
    inner = nx.spring_layout(graph, seed=1, k=2.2 / np.sqrt(max(len(graph), 1)), iterations=200)
    places = np.zeros((experts, 2))
    lone = [expert for expert in range(experts) if expert not in inner]
    for expert, place in inner.items():
        places[expert] = place
    for turn, expert in enumerate(lone):
        angle = 2 * np.pi * turn / len(lone)
        places[expert] = 1.35 * np.array([np.cos(angle), np.sin(angle)])
    return places


PLACEMENT_FIGURES: dict[str, Callable[[PlacementStudy], Figure | None]] = {
    "placement-rank-load.png": draw_rank_load,
    "placement-layers.png": draw_layer_imbalance,
    "placement-redundancy.png": draw_redundancy,
    "placement-between-nodes.png": draw_between_nodes,
    "placement-online.png": draw_online,
    "placement-coactivation.png": draw_coactivation,
}
