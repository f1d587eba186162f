"""Which GPU should hold which expert, and what that is worth on tokens it was not fitted to."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.report.blocks import Section, Table
from moeprof.report.charts import RATIO, Chart, Measure, Series
from moeprof.report.contents import ReportContents
from moeprof.report.placing import EPLB, ORDER, PLACED, SPARE, PlacementComparison
from moeprof.report.wording import counted, held_bytes, times


def placement_section(contents: ReportContents) -> Section | None:
    """What steps wait for under four maps, and imbalance by layer."""
    title, compared = "Placement", contents.placement
    if compared is None:
        reason = contents.missing.get("placement")
        return Section("placement", title, [f"Not shown: {reason}."], []) if reason else None
    steps = {name: compared.of(name).step_imbalance.value for name in (ORDER, EPLB, PLACED, SPARE)}
    judged = compared.judged
    batch = "as recorded" if judged.batch is None else f"of {judged.batch} requests at a time"
    lead = [
        f"On {contents.cluster.gpus} GPUs, maps fitted on the earlier half of the tokens and "
        f"judged on {judged.tokens:,} later ones, in {counted(judged.steps, 'step')} {batch}.",
        f"A step waits for the busiest GPU of every layer: {times(steps[ORDER])} of an even share "
        f"with experts in order of id, {times(steps[EPLB])} with EPLB's map, "
        f"{times(steps[PLACED])} placed by moeprof, {times(steps[SPARE])} with one slot more on "
        "every GPU.",
    ]
    layers = contents.load.per_layer if contents.load else []
    blocks: list[Chart | Table] = [_table(compared)]
    if layers:
        blocks.insert(0, _by_layer(compared, [layer.layer for layer in layers]))
    return Section("placement", title, lead, blocks)


def _by_layer(compared: PlacementComparison, layers: Sequence[int]) -> Chart:
    shown = {name: compared.of(name).imbalance_by_layer for name in (ORDER, EPLB, PLACED)}
    hues = {ORDER: "b", EPLB: "d", PLACED: "a"}
    return Chart(
        id="placement-layer",
        title="Imbalance of each layer's GPUs on the later tokens",
        alt="; ".join(
            f"{name}: {min(values):.2f} to {max(values):.2f}" for name, values in shown.items()
        ),
        x=Measure("layer"),
        y=Measure("imbalance (max / mean)", RATIO, start=1),
        series=[
            Series(name, hues[name], list(zip(layers, values, strict=True)), "stems")
            for name, values in shown.items()
        ],
        caption="Of the loads summed over the later tokens; replicas share theirs equally.",
    )


def _table(compared: PlacementComparison) -> Table:
    rows = []
    for one in compared.judged.judgements:
        size = compared.redundant_bytes_per_gpu[one.name]
        low, high = one.step_imbalance.low, one.step_imbalance.high
        known = low is not None and high is not None
        spread = f" ({low:.3f} to {high:.3f})" if known else ""
        rows.append(
            [
                one.name,
                f"{compared.redundant[one.name]}",
                f"{one.step_imbalance.value:.3f}{spread}",
                f"{one.imbalance.value:.3f}",
                f"{one.busiest_p99.value:,.0f}",
                "-" if size is None else held_bytes(size),
            ]
        )
    return Table(
        title="Maps side by side",
        columns=[
            "map",
            "redundant",
            "steps wait for / even",
            "imbalance of the sum",
            "99th percentile (assignments)",
            f"redundancy a GPU ({compared.precision})",
        ],
        rows=rows,
        note="In brackets the 95 % interval over requests, where they are told apart.",
        open=True,
    )
