"""Which experts get the tokens: the heatmap layer x expert."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis import LoadResult
from moeprof.report.blocks import Axis, Cell, Heatmap, HeatView, Section, Table, Tick, name_ticks
from moeprof.report.contents import ReportContents
from moeprof.report.pixels import (
    DARK,
    LIGHT,
    OCTAVES,
    UNUSED_DARK,
    UNUSED_LIGHT,
    colour_index,
    palette,
    png_uri,
)
from moeprof.report.sampled import error_words
from moeprof.report.wording import percent


def load_section(contents: ReportContents) -> Section:
    """The heatmap with its views, and the busiest expert of every layer as a table."""
    load = contents.load
    title = "Expert load"
    if load is None:
        return Section("load", title, [f"Not shown: {contents.missing['load']}."], [])
    lead = [
        "Each row is a layer, each cell an expert, coloured by its assignments over the mean of "
        "the layer. A row of one colour is an even layer.",
    ]
    if contents.info.sampling:
        lead.append(f"Requests were sampled. {error_words(contents.sampling)}")
    if contents.views_left_out:
        lead.append(
            f"{contents.views_left_out} more choices of tokens (by label) are left out to keep the "
            "page small."
        )
    return Section("load", title, lead, [_heatmap(contents, load), _table(contents, load)])


def _heatmap(contents: ReportContents, load: LoadResult) -> Heatmap:
    layers = [layer.layer for layer in load.per_layer]
    return Heatmap(
        id="heat",
        title="Assignments of each expert, relative to its layer's mean",
        alt=(
            f"Heatmap of {len(layers)} layers by {load.experts} experts; the table below gives the "
            "busiest expert of each layer."
        ),
        layers=layers,
        experts=load.experts,
        views=[_view(name, counts) for name, counts in contents.views.items()],
        x=Axis("expert", name_ticks(range(load.experts), 8)),
        y=Axis("layer", name_ticks(layers, 12)),
        scale=Axis("times the mean", _scale_ticks()),
        height=min(max(round(480 / len(layers)), 6), 28) * len(layers),
        caption="Layers run downwards. Point at a cell for its numbers.",
    )


def _view(name: str, counts: NDArray[np.int64]) -> HeatView:
    index = colour_index(counts)
    return HeatView(
        name=name,
        light=png_uri(index, palette(LIGHT, UNUSED_LIGHT)),
        dark=png_uri(index, palette(DARK, UNUSED_DARK)),
        load=counts.tolist(),
    )


def _scale_ticks() -> list[Tick]:
    words = {-2: "≤ ¼", -1: "½", 0: "1", 1: "2", 2: "≥ 4"}
    return [Tick((o + OCTAVES) / (2 * OCTAVES), word) for o, word in words.items()]


def _table(contents: ReportContents, load: LoadResult) -> Table:
    rows: list[list[Cell]] = []
    sampling = contents.sampling
    for row, (layer, counts) in enumerate(zip(load.per_layer, load.load, strict=True)):
        busiest = int(counts.argmax())
        share = counts[busiest] / max(layer.assignments, 1)
        rows.append(
            [
                layer.layer,
                f"{layer.assignments:,}",
                busiest,
                percent(share)
                + (f" ± {percent(sampling.share_error[row, busiest])}" if sampling else ""),
                f"{layer.imbalance:.2f}"
                + (f" ± {sampling.per_layer[row].imbalance_error:.2f}" if sampling else ""),
                f"{layer.balancedness:.2f}",
                f"{layer.gini:.3f}",
                f"{layer.entropy:.2f}",
                layer.unused_experts,
            ]
        )
    return Table(
        title=f"Load of all {len(rows)} layers as a table",
        columns=[
            "layer",
            "assignments",
            "busiest expert",
            "its share",
            "imbalance (max/mean)",
            "balancedness (mean/max)",
            "Gini",
            f"entropy (bits of {np.log2(load.experts):.2f})",
            "unused experts",
        ],
        rows=rows,
        note="± is one standard error of the sample." if sampling else "",
    )
