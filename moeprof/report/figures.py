"""The figures of the page for slides and papers: PNG, SVG or PDF. One function a figure.

Same contents, same bytes: no date is written, and ids in an SVG come from its content. Matplotlib
draws on a figure of its own with the Agg canvas: no window, no global state.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from moeprof.cache import LruCurve
from moeprof.report.affinity_figures import draw_coactivation_matrix, draw_next_layer
from moeprof.report.cache_figures import draw_offload, draw_policies, plain
from moeprof.report.contents import ReportContents
from moeprof.report.curves import resident_share
from moeprof.report.load_figures import draw_step_imbalance
from moeprof.report.locality_figures import draw_distinct, draw_reuse
from moeprof.report.palette import BLUE, GREY, HUES, INK, ORANGE, ROOM, STYLE
from moeprof.report.pixels import LIGHT, OCTAVES, UNUSED_LIGHT
from moeprof.report.projection_figures import (
    draw_cost,
    draw_levers,
    draw_load_curves,
    draw_operations,
    draw_pareto,
    draw_projected_memory,
    draw_routing_sensitivity,
)
from moeprof.report.sections.imbalance import whole_windows
from moeprof.report.sections.memory import PIECES
from moeprof.report.specialization_figures import (
    draw_domain_distances,
    draw_domains,
    draw_specialists,
)
from moeprof.report.wording import GIB, short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# The facts that each format would be given by itself, which change from run to run.
FORMATS: dict[str, tuple[str, ...]] = {
    "png": ("Software",),
    "svg": ("Date", "Creator"),
    "pdf": ("CreationDate", "Creator", "Producer"),
}


def save_figures(
    contents: ReportContents, folder: str | Path, image_format: str = "png"
) -> list[Path]:
    """Write every figure that `contents` has data for into `folder`; returns their paths.

    `image_format` is one of FORMATS. All are drawn before the first is put in its place: a failure
    to draw leaves none behind.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".figures-", dir=folder) as drafts:
        names = [(name, figure_file(name, image_format)) for name in FIGURES]
        drawn = [file for name, file in names if _draw(name, contents, Path(drafts) / file)]
        for name in drawn:
            os.replace(Path(drafts) / name, folder / name)
    return [folder / name for name in drawn]


def figure_file(name: str, image_format: str) -> str:
    """The file of a figure of FIGURES in another format."""
    return str(Path(name).with_suffix(f".{image_format}"))


def _draw(name: str, contents: ReportContents, path: Path) -> bool:
    """Draw one figure to `path`; False where `contents` has no data for it."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = STYLE  # the stub lists every key as a literal
    with matplotlib.rc_context(rc={**style, "svg.hashsalt": "moeprof"}):
        figure = Figure(figsize=(8.6, 4.6), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        if not FIGURES[name](figure, contents):
            return False
        unstated: Any = dict.fromkeys(FORMATS[path.suffix[1:]])
        figure.savefig(path, metadata=unstated)
        return True


def draw_load(figure: Figure, contents: ReportContents) -> bool:
    """Heatmap layer x expert of assignments over the layer's mean."""
    from matplotlib.colors import LinearSegmentedColormap

    load = contents.load
    if load is None:
        return False
    mean = load.load.mean(axis=1, keepdims=True)
    ratio = np.divide(load.load, mean, out=np.ones(load.load.shape), where=mean > 0)
    octaves = np.log2(np.where(ratio > 0, ratio, np.nan))
    colours = LinearSegmentedColormap.from_list("load", list(LIGHT)).with_extremes(bad=UNUSED_LIGHT)
    axes = figure.add_subplot()
    image = axes.imshow(
        octaves, cmap=colours, vmin=-OCTAVES, vmax=OCTAVES, aspect="auto", interpolation="nearest"
    )
    layers = [layer.layer for layer in load.per_layer]
    rows = range(0, len(layers), max(1, -(-len(layers) // 12)))
    axes.set_yticks(list(rows), [str(layers[row]) for row in rows])
    axes.set(xlabel="expert", ylabel="layer", title=f"Load of each expert, {_recorded(contents)}")
    bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=30)
    bar.set_ticks([-2, -1, 0, 1, 2], labels=["≤ ¼", "½", "1", "2", "≥ 4"])
    bar.set_label("assignments / mean of the layer (black: never used)")
    bar.outline.set_visible(False)
    return True


def draw_imbalance(figure: Figure, contents: ReportContents) -> bool:
    """Imbalance by layer, and over time where the recording has an order."""
    from matplotlib.ticker import MaxNLocator

    load, gpus = contents.load, contents.gpu_load
    if load is None:
        return False
    windows = whole_windows(load)
    timed = windows > 1
    panels = figure.subplots(2 if timed else 1, 1, squeeze=False)[:, 0]
    if timed:
        figure.set_size_inches(8.6, 6.4)
    layers = [layer.layer for layer in load.per_layer]
    for result, colour, name in ((load, BLUE, "experts"), (gpus, ORANGE, _gpus(contents))):
        if result is None:
            continue
        panels[0].plot(
            layers, [layer.imbalance for layer in result.per_layer], "o", ms=4, c=colour, label=name
        )
        if timed:
            middle = (np.arange(windows) + 0.5) * result.window_tokens
            panels[1].plot(middle, result.over_time[:windows], c=colour, lw=1.8, label=name)
    panels[0].xaxis.set_major_locator(MaxNLocator(12, integer=True))
    panels[0].set(xlabel="layer", title=f"Imbalance, {_recorded(contents)}")
    if timed:
        even = contents.even_window_imbalance or 1.0
        panels[1].axhline(even, c=GREY, ls="--", lw=1.2, label="even router, by chance")
        panels[1].set(xlabel=f"tokens recorded (windows of {load.window_tokens:,})")
    for axes in panels:
        axes.set(ylabel="imbalance (max / mean)")
        axes.set_ylim(1, max(axes.get_ylim()[1], 1.25))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.1)
        axes.title.set_position((0, 1.1))
    panels[0].set_title(panels[0].get_title(loc="left"), pad=26)
    return True


def draw_miss_ratio(figure: Figure, contents: ReportContents) -> bool:
    """Miss ratio of LRU by the share of experts resident, with the bytes on a second axis."""
    layered, pooled = contents.layer_curve, contents.global_curve
    if layered is None or pooled is None:
        return False
    axes = figure.add_subplot()
    for curve, colour, name in (
        (layered, BLUE, "slots in every layer"),
        (pooled, ORANGE, "one pool for all layers"),
    ):
        axes.plot(*_miss_line(curve), c=colour, lw=2, label=name)
    axes.axvline(100 * pooled.token_cycle / len(pooled.slots), c=INK, lw=0.9, ls=":")
    axes.annotate(
        f"token cycle: {pooled.token_cycle} slots",
        (100 * pooled.token_cycle / len(pooled.slots), 100),
        xytext=(5, 5),
        textcoords="offset points",
        color=INK,
        fontsize=9,
        annotation_clip=False,
    )
    phase = "all" if layered.phase == "all" else layered.phase
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="share of all experts resident (%)")
    axes.set_ylabel("miss ratio (% of reads)")
    axes.set_title(f"LRU expert cache, {_recorded(contents)}, {phase} tokens", pad=22)
    axes.grid(axis="y")
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.97))
    _add_bytes_axis(axes, contents, layered)
    return True


def draw_memory(figure: Figure, contents: ReportContents) -> bool:
    """Stacked bars of weights and room for KV on one GPU, one bar a precision."""
    ledgers = [deployment.ledger for deployment in contents.deployments]
    if not ledgers:
        return False
    figure.set_size_inches(8.6, 3.6)
    axes = figure.add_subplot()
    names = [ledger.precision.upper() for ledger in ledgers]
    capacity = ledgers[0].capacity.value / GIB
    usable = capacity - ledgers[0].classes["reserve"].value / GIB
    left = np.zeros(len(ledgers))
    for piece, (hue, classes) in PIECES.items():
        width = np.array([sum(lg.classes[c].value for c in classes) / GIB for lg in ledgers])
        axes.barh(names, width, left=left, height=0.56, color=HUES[hue], label=piece)
        left += width
    room = np.maximum(usable - left, 0)
    fits = room > 0
    axes.barh(
        np.array(names)[fits],
        room[fits],
        left=left[fits],
        height=0.56,
        fc="#eef6f1",
        ec=ROOM,
        hatch="///",
        label="room for KV",
    )
    for row, ledger in enumerate(ledgers):
        words = (
            f"{short_count(ledger.max_kv_tokens)} tokens of KV" if ledger.fits else "does not fit"
        )
        end = max(left[row] + room[row], capacity)
        axes.annotate(
            words, (end, row), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.axvline(usable, c=INK, lw=1, ls="--")
    axes.axvline(capacity, c=INK, lw=1.2)
    top = axes.get_xaxis_transform()
    for at, word, side in ((usable, "usable ", "right"), (capacity, " card", "left")):
        axes.text(at, 1.01, word, transform=top, ha=side, va="bottom", fontsize=9)
    axes.set(xlim=(0, 1.24 * max(capacity, left.max())), xlabel="GiB on one GPU")
    axes.set_title(f"Memory: {ledgers[0].model} on {ledgers[0].hardware}", pad=22)
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=5)
    return True


def _miss_line(curve: LruCurve) -> tuple[list[float], list[float]]:
    share = [0.0, *(100 * resident_share(curve, slots) for slots in curve.slots)]
    return share, [100.0, *(100 * (1 - hits) for hits in curve.hit_ratio)]


def _add_bytes_axis(axes: Axes, contents: ReportContents, curve: LruCurve) -> None:
    size = contents.expert_bytes.get("bf16")
    if not size:
        return
    most = curve.accesses / curve.tokens * size
    unit, scale = next((p for p in (("GB", 1e9), ("MB", 1e6)) if most >= 2 * p[1]), ("kB", 1e3))
    right = axes.twinx()
    right.set(ylim=(0, most / scale), ylabel=f"{unit} read a token (BF16)")
    right.spines["right"].set_visible(True)


def _recorded(contents: ReportContents) -> str:
    return plain(contents.recorded.name)


def _gpus(contents: ReportContents) -> str:
    return f"{contents.cluster.gpus} GPUs, experts in order of id"


FIGURES: dict[str, Callable[[Figure, ReportContents], bool]] = {
    "load-heatmap.png": draw_load,
    "imbalance.png": draw_imbalance,
    "affinity-pairs.png": draw_coactivation_matrix,
    "affinity-next-layer.png": draw_next_layer,
    "step-imbalance.png": draw_step_imbalance,
    "distinct-experts.png": draw_distinct,
    "reuse.png": draw_reuse,
    "miss-ratio.png": draw_miss_ratio,
    "cache-policies.png": draw_policies,
    "specialization.png": draw_domains,
    "domain-distances.png": draw_domain_distances,
    "specialists.png": draw_specialists,
    "memory.png": draw_memory,
    "projected-memory.png": draw_projected_memory,
    "projected-operations.png": draw_operations,
    "projected-levers.png": draw_levers,
    "projected-pareto.png": draw_pareto,
    "projected-cost.png": draw_cost,
    "projected-load.png": draw_load_curves,
    "projected-routing.png": draw_routing_sensitivity,
    "offload.png": draw_offload,
}
