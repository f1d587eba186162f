"""Measured against predicted, one point a row, coloured by hardware and shaped by engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .scores import grouped
from .trial import Judged

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
OFF = (1.25, 2.0)  # factors marked beside the diagonal


def scatter(judged: Sequence[Judged], path: Path, title: str) -> Path:
    """Draw TPOT of all rows that are measured and forecast to `path` (.svg or .png).

    Both axes are logarithmic and in milliseconds; on the diagonal the prediction is right, dotted
    lines are OFF times off.
    """
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "moeprof"  # the same points, the same bytes
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    known = [each for each in judged if each.row.tpot_ms and each.forecast.tpot_ms]
    groups = grouped(known, lambda each: f"{each.row.hardware}, {each.row.engine}")
    colours = _styles([each.row.hardware for each in known], COLOURS)
    markers = _styles([each.row.engine for each in known], MARKERS)
    for name, rows in groups.items():
        axes.scatter(
            [each.row.tpot_ms for each in rows if each.row.tpot_ms],
            [each.forecast.tpot_ms.value for each in rows if each.forecast.tpot_ms],
            label=f"{name} ({len(rows)})",
            color=colours[rows[0].row.hardware],
            marker=markers[rows[0].row.engine],
            s=14,
            alpha=0.6,
            linewidths=0,
        )
    for factor in (1.0, *OFF, *(1 / each for each in OFF)):
        style = "-" if factor == 1 else ":"
        axes.axline((1, factor), (10, 10 * factor), color="grey", lw=0.8, ls=style, zorder=0)
    axes.set(xscale="log", yscale="log", xlim=_limits(known), ylim=_limits(known))
    axes.set(xlabel="measured TPOT, ms", ylabel="predicted TPOT, ms")
    axes.set_title(title)
    axes.set_aspect("equal")
    axes.legend(fontsize=7)
    plain = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, dpi=100, metadata=plain)
    return path


def _limits(known: Sequence[Judged]) -> tuple[float, float]:
    """From below the least time to above the greatest, of both kinds."""
    times = [each.row.tpot_ms for each in known if each.row.tpot_ms]
    times += [each.forecast.tpot_ms.value for each in known if each.forecast.tpot_ms]
    return min(times) / 1.2, max(times) * 1.2


def _styles(names: Sequence[str], styles: Sequence[str]) -> dict[str, str]:
    return {name: styles[i % len(styles)] for i, name in enumerate(sorted(set(names)))}
