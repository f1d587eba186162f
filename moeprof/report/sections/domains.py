"""Whether labels use different experts, layer by layer."""

from __future__ import annotations

from moeprof.report.blocks import Cell, Section, Table
from moeprof.report.charts import Chart, Measure, Series
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


def _plot(contents: ReportContents, layers: list[int]) -> Chart:
    result = contents.specialization
    if result is None:
        raise ValueError("the divergence of labels was not computed")
    ends = (float(layers[0]), float(layers[-1]))
    return Chart(
        id="domains-layer",
        title="Divergence between labels in each layer",
        alt=(
            f"Divergence by layer, {min(result.per_layer):.3f} to {max(result.per_layer):.3f} bit; "
            f"mean {result.specialization:.3f}, shuffled {result.null:.3f} bit."
        ),
        x=Measure("layer"),
        y=Measure("divergence (bit)", "bit", start=0),
        series=[
            Series(
                "between labels", "a", list(zip(layers, result.per_layer, strict=True)), "stems"
            ),
            Series(
                "labels shuffled, mean over layers",
                "grey",
                [(layer, result.null) for layer in ends],
                "dashed",
            ),
        ],
    )
