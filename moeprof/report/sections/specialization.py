"""Whether labels use different experts: layer by layer, label by label, expert by expert."""

from __future__ import annotations

from moeprof.analysis import SpecializationResult
from moeprof.report.blocks import Block, Cell, Section, Table
from moeprof.report.charts import Chart, Measure, Series
from moeprof.report.contents import ReportContents
from moeprof.report.wording import counted, listed, percent, times

SIGNIFICANT = 0.05


def specialization_section(contents: ReportContents) -> Section | None:
    """How far labels are apart; nothing where there are no labels to compare."""
    result = contents.specialization
    if result is None:
        if not contents.info.labels:
            return None
        reason = contents.missing.get("specialization") or contents.missing["load"]
        return Section("specialization", "Specialization", [f"Not shown: {reason}."], [])
    blocks: list[Block] = [_by_layer(result), _layer_table(result)]
    blocks += [_specialists(result)] if result.specialists else []
    blocks += [_distances(result)] if len(result.domains) > 2 else []
    return Section("specialization", "Specialization", _lead(result), blocks)


def _lead(result: SpecializationResult) -> list[str]:
    interval, differ = result.interval, result.p_value <= SIGNIFICANT
    verdict = (
        "do use different experts"
        if differ
        else "show no difference that chance would not make"
        if result.smallest_p <= SIGNIFICANT
        else "have too few requests to tell whether they use different experts"
    )
    apart = (
        f"{counted(len(result.domains), 'label')} ({listed(result.domains)}) {verdict}: their "
        f"expert distributions lie {result.specialization:.3f} bits apart (Jensen-Shannon, 0 where "
        f"they are equal), and {result.null:.3f} with labels shuffled over the "
        f"{result.requests} requests. Beyond chance that leaves {result.excess:.3f}; 95 % interval "
        f"{max(interval.low, 0):.3f} to {interval.high:.3f}, p = {result.p_value:.3f}."
    )
    passed = sum(layer.q_value <= SIGNIFICANT for layer in result.layers)
    most = max(result.layers, key=lambda layer: layer.excess)
    where = (
        f"{passed} of {counted(len(result.layers), 'layer')} differ with q \u2264 {SIGNIFICANT}, "
        f"layer {most.layer} the most."
    )
    return [apart, where] if differ else [apart]


def _by_layer(result: SpecializationResult) -> Chart:
    layers = result.layers
    return Chart(
        id="specialization-layer",
        title="Divergence between labels in each layer",
        alt=(
            f"Divergence by layer, {min(result.per_layer):.3f} to {max(result.per_layer):.3f} bit; "
            f"mean {result.specialization:.3f}, shuffled {result.null:.3f} bit."
        ),
        x=Measure("layer"),
        y=Measure("divergence (bit)", "bit", start=min(0, *(one.interval.low for one in layers))),
        series=[
            Series(
                "95 % interval, without what noise adds",
                "c",
                [(one.layer, one.excess, one.interval.low, one.interval.high) for one in layers],
                "band",
            ),
            Series(
                "between labels",
                "a",
                [(one.layer, one.specialization) for one in layers],
                "stems",
                [f"q = {one.q_value:.2g}" for one in layers],
            ),
            Series("labels shuffled", "grey", [(one.layer, one.null) for one in layers], "dashed"),
        ],
        caption=f"Labels were shuffled over requests {result.shuffles} times. Intervals draw "
        "requests anew, not tokens; q allows for the number of layers.",
    )


def _layer_table(result: SpecializationResult) -> Table:
    rows: list[list[Cell]] = [
        [
            one.layer,
            f"{one.specialization:.4f}",
            f"{one.null:.4f}",
            f"{one.excess:.4f}",
            f"{max(one.interval.low, 0):.4f} to {one.interval.high:.4f}",
            f"{one.q_value:.3f}",
        ]
        for one in result.layers
    ]
    columns = ["layer", "divergence (bit)", "by chance", "beyond chance", "95 % interval", "q"]
    return Table("Divergence of every layer as a table", columns, rows)


def _specialists(result: SpecializationResult) -> Table:
    rows: list[list[Cell]] = [
        [
            one.domain,
            one.layer,
            one.expert,
            percent(one.share),
            percent(one.share_elsewhere),
            "only there" if one.lift is None else times(one.lift),
            f"{one.q_value:.1g}",
        ]
        for one in result.specialists
    ]
    return Table(
        title=f"Specialists: the first {len(rows)} of {result.specialists_found:,}",
        columns=["label", "layer", "expert", "of its tokens", "of all others", "lift", "q"],
        rows=rows,
        note=f"Experts that a label's tokens choose more often than all others do, of "
        f"{result.tests:,} tested (expert, label, layer), those first that matter most; at most 1 "
        "in 20 of them by chance.",
    )


def _distances(result: SpecializationResult) -> Table:
    rows: list[list[Cell]] = [
        [name, *("-" if at == row else f"{value:.4f}" for at, value in enumerate(values))]
        for row, (name, values) in enumerate(zip(result.domains, result.distances, strict=True))
    ]
    return Table(
        title="Which labels are alike",
        columns=["bit beyond chance", *result.domains],
        rows=rows,
        note="Mean over layers, two labels at a time.",
    )
