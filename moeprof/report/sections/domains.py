"""Whether labels use different experts, layer by layer."""

from __future__ import annotations

from moeprof.report.blocks import (
    Axis,
    Cell,
    Plot,
    Section,
    Series,
    Table,
    Tick,
    axis_ticks,
    name_ticks,
)
from moeprof.report.contents import ReportContents
from moeprof.report.wording import listed


def domains_section(contents: ReportContents) -> Section | None:
    """Divergence between the labels by layer; nothing where there are no labels to compare."""
    result = contents.specialization
    if result is None:
        if not contents.info.labels:
            return None
        reason = contents.missing.get("specialization") or contents.missing["load"]
        return Section("domains", "Labels", [f"Not shown: {reason}."], [])
    layers = [layer.layer for layer in contents.load.per_layer] if contents.load else []
    lead = [
        f"How far apart the expert distributions of {listed(result.domains)} lie: the "
        "Jensen-Shannon divergence, 0 where they are equal. Requests of any kind differ a little, "
        f"so the labels were shuffled over the {result.requests} requests {result.shuffles} times: "
        "the dashed line is the mean over layers that this gives.",
    ]
    rows: list[list[Cell]] = [
        [layer, f"{value:.4f}"] for layer, value in zip(layers, result.per_layer, strict=True)
    ]
    table = Table("Divergence of every layer as a table", ["layer", "divergence (bit)"], rows)
    return Section("domains", "Labels", lead, [_plot(contents, layers), table])


def _plot(contents: ReportContents, layers: list[int]) -> Plot:
    result = contents.specialization
    if result is None:
        raise ValueError("the divergence of labels was not computed")
    top = 1.12 * max(*result.per_layer, result.null_p95, 0.01)
    place = [(i + 0.5) / len(layers) for i in range(len(layers))]
    return Plot(
        id="domains-layer",
        title="Divergence between labels in each layer",
        alt=(
            f"Divergence by layer, {min(result.per_layer):.3f} to {max(result.per_layer):.3f} bit; "
            f"mean {result.specialization:.3f}, shuffled {result.null:.3f} bit."
        ),
        x=Axis("layer", name_ticks(layers, 12)),
        y=Axis("divergence (bit)", [Tick(at / top, f"{at:g}") for at in axis_ticks(0, top, 4)]),
        series=[
            Series(
                "between labels",
                "a",
                [(x, value / top) for x, value in zip(place, result.per_layer, strict=True)],
                "dots",
            ),
            Series(
                "labels shuffled, mean over layers",
                "grey",
                [(0.0, result.null / top), (1.0, result.null / top)],
                "dashed",
            ),
        ],
        hover=[
            (x, f"layer {layer}\n{value:.4f} bit")
            for x, layer, value in zip(place, layers, result.per_layer, strict=True)
        ],
    )
