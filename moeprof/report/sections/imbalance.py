"""How uneven the load is, layer by layer and as the recording goes on."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis import LoadResult
from moeprof.report.blocks import Section, Table
from moeprof.report.charts import RATIO, Chart, Measure, Series
from moeprof.report.contents import ReportContents
from moeprof.report.wording import times


def imbalance_section(contents: ReportContents) -> Section | None:
    """Imbalance by layer and over time, for experts and for GPUs."""
    load = contents.load
    if load is None:
        return None
    lead = [
        "Imbalance is the busiest over the mean: 1 is even, 2 means that one expert (or one GPU) "
        "has twice its share."
    ]
    if contents.sampling:
        worst = max(layer.imbalance_error for layer in contents.sampling.per_layer)
        lead.append(
            "Requests were sampled: one standard error of a layer's imbalance is up to "
            f"{times(worst)}, and windows, phases and labels have larger ones."
        )
    if "gpus" in contents.missing:
        lead.append(f"Not shown by GPU: {contents.missing['gpus']}.")
    blocks: list[Chart | Table] = [_by_layer(load, _several(contents))]
    if whole_windows(load) > 1:
        blocks.append(_over_time(contents, load))
    if load.per_phase or load.per_label:
        blocks.append(_groups(contents, load))
    return Section("imbalance", "Imbalance", lead, blocks)


def _several(contents: ReportContents) -> LoadResult | None:
    """Load by GPU, where there is more than one to be uneven."""
    on_gpus = contents.gpu_load
    return on_gpus if on_gpus and on_gpus.gpus and on_gpus.gpus > 1 else None


def _by_layer(load: LoadResult, gpu_load: LoadResult | None) -> Chart:
    series = [Series("experts", "a", by_layer(load), "stems")]
    if gpu_load:
        series.append(Series(_gpu_name(gpu_load), "b", by_layer(gpu_load), "stems"))
    values = [layer.imbalance for layer in load.per_layer]
    return Chart(
        id="imbalance-layer",
        title="Imbalance of each layer",
        alt=(
            f"Imbalance of {len(values)} layers, from {min(values):.2f} to {max(values):.2f} "
            "times the mean; numbers in the table of the section before."
        ),
        x=Measure("layer"),
        y=_imbalance([y for each in series for _, y in each.points]),
        series=series,
    )


def by_layer(load: LoadResult) -> list[tuple[float, float]]:
    """(layer, imbalance) of each."""
    return [(float(layer.layer), layer.imbalance) for layer in load.per_layer]


def whole_windows(load: LoadResult) -> int:
    """Windows of full length: the last one may hold few tokens, and chance would rule it."""
    return load.tokens // load.window_tokens if load.window_tokens else 0


def _over_time(contents: ReportContents, load: LoadResult) -> Chart:
    windows, tokens = whole_windows(load), load.window_tokens
    experts, even = load.over_time[:windows], contents.even_window_imbalance or 1.0
    series = [Series("experts", "a", _windows(load, windows))]
    if on_gpus := _several(contents):
        series.append(Series(_gpu_name(on_gpus), "b", _windows(on_gpus, windows)))
    level = [(0.0, even), (float(tokens * windows), even)]
    series.append(Series("experts of an even router, by chance", "grey", level, "dashed"))
    return Chart(
        id="imbalance-time",
        title="Imbalance over time, mean over layers",
        alt=(
            f"Mean imbalance in {windows} windows, from {min(experts):.2f} to {max(experts):.2f} "
            f"times the mean; an even router would show {even:.2f}."
        ),
        x=Measure("tokens recorded"),
        y=_imbalance([y for each in series for _, y in each.points]),
        series=series,
        caption=(
            f"Windows of {tokens:,} tokens. A short window is uneven by chance, and "
            f"the dashed line says how much: {times(even)}."
        ),
    )


def _windows(load: LoadResult, windows: int) -> list[tuple[float, float]]:
    """(tokens until the middle of a window, imbalance)."""
    middles = ((number + 0.5) * load.window_tokens for number in range(windows))
    return list(zip(middles, load.over_time[:windows], strict=True))


def _groups(contents: ReportContents, load: LoadResult) -> Table:
    gpu_load = contents.gpu_load
    names = [("phase", load.per_phase), ("label", load.per_label)]
    rows = []
    for kind, values in names:
        on_gpus = getattr(gpu_load, f"per_{kind}") if gpu_load else {}
        for name, value in values.items():
            gpu = times(on_gpus[name]) if name in on_gpus else "-"
            rows.append([kind, name, times(value), gpu])
    gpu_column = f"imbalance, {_gpu_name(gpu_load)}" if gpu_load else "imbalance of GPUs"
    return Table(
        title="Imbalance by phase and label as a table",
        columns=["by", "tokens of", "imbalance of experts", gpu_column],
        rows=rows,
        note="Mean over layers. Fewer tokens are more uneven by chance.",
    )


def _gpu_name(load: LoadResult) -> str:
    return f"{load.gpus} GPUs, experts in order of id"


def _imbalance(values: Sequence[float]) -> Measure:
    """From 1, and never so near it that noise fills the axis."""
    end = 1 + 1.08 * max(max(values) - 1, 0.25)
    return Measure("imbalance (max / mean)", RATIO, start=1, end=end)
