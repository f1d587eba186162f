"""A comparison of two recordings as PNG: how far apart their experts are, layer by layer."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from moeprof.analysis.comparison import TraceComparison
from moeprof.errors import InputError
from moeprof.report.cache_figures import plain
from moeprof.report.palette import BLUE, GREY, ORANGE, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "comparison-layers.png"


def save_comparison_figure(
    comparison: TraceComparison, folder: str | Path, *, force: bool = False
) -> Path:
    """Draw `comparison` into `folder` and return the file's path.

    Raises InputError where it is there already, without `force`, or if the models are not alike:
    no layer of one then stands for a layer of the other.
    """
    if comparison.divergence is None:
        raise InputError("layers of models that are not alike cannot be drawn beside each other")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, name a folder for the figure")
    if (folder / NAME).exists() and not force:
        raise InputError(f"{folder / NAME} exists, it is not overwritten without --force")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".figures-", dir=folder) as drafts:
        _draw(comparison, Path(drafts) / NAME)
        os.replace(Path(drafts) / NAME, folder / NAME)
    return folder / NAME


def _draw(comparison: TraceComparison, path: Path) -> None:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = STYLE
    with matplotlib.rc_context(rc=style):
        panels = 3 if comparison.agreement else 2
        figure = Figure(figsize=(8.6, 2.4 * panels), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(panels, 1, sharex=True)
        _draw_divergence(axes[0], comparison)
        _draw_imbalance(axes[1], comparison)
        if comparison.agreement:
            _draw_agreement(axes[2], comparison)
        _finish(figure, axes, comparison)
        figure.savefig(path, metadata={"Software": None})


def _draw_divergence(axes: Axes, comparison: TraceComparison) -> None:
    assert comparison.divergence is not None
    layers = comparison.divergence.per_layer
    x = [layer.layer for layer in layers]
    for chosen, style, name in ((True, BLUE, "beyond chance"), (False, "white", "within chance")):
        points = [layer for layer in layers if layer.significant is chosen]
        if points:
            axes.plot(
                [p.layer for p in points],
                [p.value for p in points],
                "o",
                ms=4.5,
                mfc=style,
                mec=BLUE,
                label=name,
            )
    axes.plot(x, [layer.null for layer in layers], c=GREY, ls="--", lw=1.2, label="by chance")
    axes.set(ylabel="bits apart")
    axes.set_ylim(bottom=0)


def _draw_imbalance(axes: Axes, comparison: TraceComparison) -> None:
    by_layer = [found for found in comparison.differences if found.layer is not None]
    x = [found.layer or 0 for found in by_layer]
    axes.plot(x, [found.a for found in by_layer], "o", ms=4, c=BLUE, label="A")
    axes.plot(x, [found.b for found in by_layer], "s", ms=3.5, c=ORANGE, label="B")
    axes.set(ylabel="imbalance (max / mean)")


def _draw_agreement(axes: Axes, comparison: TraceComparison) -> None:
    assert comparison.agreement is not None
    layers = comparison.agreement.per_layer
    x = [layer.layer for layer in layers]
    axes.plot(x, [100 * p.agreement for p in layers], "o", ms=4, c=BLUE, label="same experts")
    axes.plot(x, [100 * p.chance for p in layers], c=GREY, ls="--", lw=1.2, label="by chance")
    axes.set(ylabel="% of a token's experts", ylim=(0, 101))


def _finish(figure: Figure, panels: Any, comparison: TraceComparison) -> None:
    from matplotlib.ticker import MaxNLocator

    for axes in panels:
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.1)
    panels[-1].xaxis.set_major_locator(MaxNLocator(12, integer=True))
    panels[-1].set(xlabel="layer")
    names = (plain(Path(side.name).name) for side in (comparison.a, comparison.b))
    figure.suptitle(
        "A: {}   B: {}".format(*names), x=0.01, ha="left", fontweight="bold", fontsize=11
    )
