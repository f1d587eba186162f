"""Offloaded speeds among the published points that the project was given, predicted as they come.

Nothing of them is fitted. Hosts are not named: `HOST` is two channels of DDR5-5600, and between two
of DDR4-3200 and eight.
"""

from __future__ import annotations

from typing import NamedTuple

from moeprof.model import MoEModel

from .pages import table
from .runs import Band, Shape, shapes
from .setup import Setup

HOST = Band(2 * 5600e6 * 8.0, 2 * 3200e6 * 8.0, 8 * 3200e6 * 8.0)
RTX_3090 = 9.36e11


class Point(NamedTuple):
    """`hits` is what the source counted, or what it implies."""

    name: str
    setup: Setup
    hits: float
    tok_s: float
    source: str


def points() -> list[Point]:
    """What can be predicted: all experts on the CPU, or with a hit ratio that was counted."""
    return [
        Point(
            "MiniMax-M3 UD-Q2_K_XL, 2 x RTX 3090, experts on the CPU",
            # Bits by the name of the file: Q2_K of 2.63 and some tensors wider.
            Setup(minimax_m3(), 2.8, 6.0, RTX_3090, HOST, launches="compiled_layer_s"),
            0.0,
            2.3,
            "llama.cpp report by baguaai, second hand",
        ),
        Point(
            "DeepSeek-V4-Flash UD-Q8_K_XL, 2 x RTX 3090, cache that hits 57 %",
            Setup(shapes()["deepseek-v4-flash"], 4.25, 8.5, RTX_3090, HOST, "compiled_layer_s"),
            0.57,
            21.91,
            "https://github.com/noonghunna/club-3090/blob/master/BENCHMARKS.md",
        ),
    ]


def minimax_m3() -> Shape:
    """Its preset, as the audit states shapes."""
    model = MoEModel.preset("minimax-m3")
    counts = model.parameters
    passed_over = ("routed", "embedding", "head", "vision")
    return Shape(
        model.name,
        model.layers,
        len(model.moe_layers),
        model.experts,
        model.top_k,
        model.expert_parameters,
        counts["total"] - sum(counts[name] for name in passed_over),
        counts["head"],
    )


def points_page() -> str:
    """Each point with its error; GPUs are used one after the other, so at the rate of one."""
    lines = []
    for point in points():
        band = point.setup.tok_s(point.hits)
        inside = band.low <= point.tok_s <= band.high
        lines.append(
            (
                point.name,
                f"{point.tok_s:g}",
                f"{band.value:.3g}",
                f"{band.value / point.tok_s - 1:+.0%}",
                f"{band.low:.3g} to {band.high:.3g}",
                "yes" if inside else "**no**",
            )
        )
    return table(("point", "tok/s", "predicted", "error", "band", "in it"), lines)
