"""How uneven the load is, layer by layer and as the recording goes on."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis import LoadResult
from moeprof.report.blocks import Axis, Plot, Section, Series, Table, Tick, axis_ticks, name_ticks
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
    blocks: list[Plot | Table] = [_by_layer(load, contents.gpu_load)]
    if whole_windows(load) > 1:
        blocks.append(_over_time(contents, load))
    if load.per_phase or load.per_label:
        blocks.append(_groups(contents, load))
    return Section("imbalance", "Imbalance", lead, blocks)


def _by_layer(load: LoadResult, gpu_load: LoadResult | None) -> Plot:
    experts = [layer.imbalance for layer in load.per_layer]
    gpus = [layer.imbalance for layer in gpu_load.per_layer] if gpu_load else []
    top = _top([*experts, *gpus])
    place = [(i + 0.5) / len(experts) for i in range(len(experts))]
    series = [Series("experts", "a", _points(place, experts, top), "dots")]
    if gpu_load:
        series.append(Series(_gpu_name(gpu_load), "b", _points(place, gpus, top), "dots"))
    hover = [
        (
            x,
            f"layer {layer.layer}\nexperts {times(layer.imbalance)}"
            + (f"\nGPUs {times(gpus[i])}" if gpus else ""),
        )
        for i, (x, layer) in enumerate(zip(place, load.per_layer, strict=True))
    ]
    return Plot(
        id="imbalance-layer",
        title="Imbalance of each layer",
        alt=(
            f"Imbalance of {len(experts)} layers, from {min(experts):.2f} to {max(experts):.2f} "
            "times the mean; numbers in the table of the section before."
        ),
        x=Axis("layer", name_ticks([layer.layer for layer in load.per_layer], 12)),
        y=_y_axis(top),
        series=series,
        hover=hover,
    )


def whole_windows(load: LoadResult) -> int:
    """Windows of full length: the last one may hold few tokens, and chance would rule it."""
    return load.tokens // load.window_tokens if load.window_tokens else 0


def _over_time(contents: ReportContents, load: LoadResult) -> Plot:
    windows = whole_windows(load)
    experts = load.over_time[:windows]
    gpus = contents.gpu_load.over_time[:windows] if contents.gpu_load else []
    even = contents.even_window_imbalance or 1.0
    top = _top([*experts, *gpus, even])
    place = [(i + 0.5) / windows for i in range(windows)]
    series = [Series("experts", "a", _points(place, experts, top))]
    if contents.gpu_load:
        series.append(Series(_gpu_name(contents.gpu_load), "b", _points(place, gpus, top)))
    level = _points([0.0, 1.0], [even, even], top)
    series.append(Series("experts of an even router, by chance", "grey", level, "dashed"))
    hover = [
        (
            x,
            f"tokens {i * load.window_tokens:,} to {(i + 1) * load.window_tokens:,}"
            f"\nexperts {times(value)}" + (f"\nGPUs {times(gpus[i])}" if gpus else ""),
        )
        for i, (x, value) in enumerate(zip(place, experts, strict=True))
    ]
    covered = load.window_tokens * windows
    return Plot(
        id="imbalance-time",
        title="Imbalance over time, mean over layers",
        alt=(
            f"Mean imbalance in {windows} windows, from {min(experts):.2f} to {max(experts):.2f} "
            f"times the mean; an even router would show {even:.2f}."
        ),
        x=Axis(
            "tokens recorded",
            [
                Tick(at / covered, f"{at:,.0f}", minor=order % 2 == 1)
                for order, at in enumerate(axis_ticks(0, covered, 6))
            ],
        ),
        y=_y_axis(top),
        series=series,
        hover=hover,
        caption=(
            f"Windows of {load.window_tokens:,} tokens. A short window is uneven by chance, and "
            f"the dashed line says how much: {times(even)}."
        ),
    )


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


def _top(values: Sequence[float]) -> float:
    """End of the axis: above the largest value, and never so near 1 that noise fills it."""
    return 1 + 1.08 * max(max(values) - 1, 0.25)


def _points(
    place: Sequence[float], values: Sequence[float], top: float
) -> list[tuple[float, float]]:
    return [(x, (value - 1) / (top - 1)) for x, value in zip(place, values, strict=True)]


def _y_axis(top: float) -> Axis:
    ticks = [Tick((at - 1) / (top - 1), f"{at:g}\u00d7") for at in axis_ticks(1, top, 5)]
    return Axis("imbalance (max / mean)", ticks)
