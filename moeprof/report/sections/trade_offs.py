"""Throughput against what users feel: splits, load, routing, cost, and other models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from moeprof.projection import DeploymentProjection
from moeprof.projection.advice import ModelCost
from moeprof.projection.advice.ownership import energy_per_million
from moeprof.projection.pareto import pareto_front
from moeprof.projection.serving.project import ServingProjection
from moeprof.quantity import Quantity
from moeprof.report.blocks import Block, Section, Table
from moeprof.report.charts import Chart, Mark, Measure, Series
from moeprof.report.contents import ReportContents
from moeprof.report.projected_words import deployed, digits, load_words, split_name
from moeprof.report.projecting import ProjectionStudy
from moeprof.report.routed_speeds import EVEN, RoutedStep
from moeprof.report.wording import GIB, held_bytes, times

SPLIT_HUES = ("a", "b", "c", "d")


def trade_offs_section(contents: ReportContents) -> Section | None:
    """Speeds of users and of GPUs, by split and load."""
    study = contents.projection
    if study is None:
        return None
    front = front_of(study)
    best, widest = front[0], front[-1]
    lead = [
        f"{deployed(study)}, from one request at a time to {study.load[-1].concurrency:,}, each of "
        f"{study.traffic.input_len:,} + {study.traffic.output_len:,} tokens.",
        f"A user gets up to {digits(user_tok_s(best))} tokens/s ({split_name(best)}, "
        f"{best.concurrency:,} at a time), a GPU gives up to "
        f"{digits(gpu_tok_s(widest, study))} tokens/s ({split_name(widest)}, "
        f"{widest.concurrency:,} at a time). What lies on the front is not beaten in both.",
    ]
    blocks: list[Block] = [_pareto(study), *_cost(study), _tpot_plot(study), _ttft_plot(study)]
    blocks += [_arrival_plot(study), _arrivals(study)] if study.arrivals else []
    blocks += [_routed_plot(study), _routed_table(study)] if study.routed else []
    return Section(
        "trade-offs",
        "Load, cost and alternatives",
        lead,
        [*blocks, _models(study), *_as_fast(study)],
    )


def user_tok_s(row: DeploymentProjection) -> float:
    """Tokens/s of one request: 1 / TPOT."""
    assert row.tpot_ms is not None
    return 1e3 / row.tpot_ms.value


def gpu_tok_s(row: DeploymentProjection, study: ProjectionStudy) -> float:
    """Output tokens/s of one GPU."""
    assert row.output_tok_s is not None
    return row.output_tok_s.value / study.gpus


def fitting(line: Sequence[DeploymentProjection]) -> list[DeploymentProjection]:
    """Of one split, what fits in memory."""
    return [row for row in line if row.fits]


def front_of(study: ProjectionStudy) -> list[DeploymentProjection]:
    """Of all splits and loads that fit, by falling tokens/s a user."""
    rows = [row for line in study.splits for row in fitting(line)]
    return pareto_front(rows, lambda row: (user_tok_s(row), gpu_tok_s(row, study)))


def _pareto(study: ProjectionStudy) -> Chart:
    return _by_split(
        study,
        "trade-off-pareto",
        "Tokens/s a GPU against tokens/s a user",
        Measure("output tokens/s a GPU", "tokens/s a GPU", start=0),
        lambda row: gpu_tok_s(row, study),
        front=True,
    )


def _cost(study: ProjectionStudy) -> list[Chart]:
    """Where the profile states a price."""
    if study.chosen.cost_per_million_tokens is None:
        return []
    return [
        _by_split(
            study,
            "trade-off-cost",
            "Cost of a million output tokens against tokens/s a user",
            Measure("USD a million output tokens", "USD", "log"),
            usd,
        )
    ]


def usd(row: DeploymentProjection) -> float:
    """Of a million output tokens."""
    assert row.cost_per_million_tokens is not None
    return row.cost_per_million_tokens.value


def _by_split(
    study: ProjectionStudy,
    name: str,
    title: str,
    y: Measure,
    value: Callable[[DeploymentProjection], float],
    front: bool = False,
) -> Chart:
    lines = [line for split in study.splits if (line := fitting(split))]

    def points(name: str, hue: str, rows: list[DeploymentProjection], style: str) -> Series:
        places = [(user_tok_s(row), value(row)) for row in rows]
        return Series(name, hue, places, style, [_point_words(row, study) for row in rows])

    series = [
        points(split_name(line[0]), hue, line, "line")
        for line, hue in zip(lines, SPLIT_HUES, strict=False)
    ]
    if front:
        series.append(points("Pareto front", "grey", front_of(study), "dots"))
    rows = [row for line in lines for row in line]
    return Chart(
        id=name,
        title=title,
        alt="; ".join(f"{split_name(row)}: {digits(value(row))}" for row in rows),
        x=Measure("output tokens/s a user", "tokens/s a user", start=0),
        y=y,
        series=series,
        nearest=True,
        caption="Points of a line are requests at a time, more to the left. Even routing; only "
        "what fits in memory is drawn.",
    )


def _point_words(row: DeploymentProjection, study: ProjectionStudy) -> str:
    cost = row.cost_per_million_tokens
    price = f"\n{digits(cost.value)} USD a million tokens" if cost else ""
    assert row.ttft_ms is not None
    return (
        f"{split_name(row)}, {row.concurrency:,} at a time\n"
        f"{digits(user_tok_s(row))} tokens/s a user, {digits(gpu_tok_s(row, study))} a GPU\n"
        f"first token after {digits(row.ttft_ms.value)} ms{price}"
    )


def _tpot_plot(study: ProjectionStudy) -> Chart:
    return _by_load(
        study, "load-tpot", "Time per output token by load",
        Measure("TPOT (ms)", "ms", start=0), lambda row: row.tpot_ms,
    )  # fmt: skip


def _ttft_plot(study: ProjectionStudy) -> Chart:
    return _by_load(
        study, "load-ttft", "Time to first token by load",
        Measure("TTFT (ms)", "ms", "log"), lambda row: row.ttft_ms,
    )  # fmt: skip


def _by_load(
    study: ProjectionStudy,
    name: str,
    title: str,
    y: Measure,
    quantity: Callable[[DeploymentProjection], Quantity | None],
) -> Chart:
    rows = [(row, each) for row in study.load if (each := quantity(row)) is not None]
    points = [(row.concurrency, each.value, low_end(each), high_end(each)) for row, each in rows]
    most = study.load[0].max_concurrency or 0
    held = study.load[0].concurrency < most < study.load[-1].concurrency
    return Chart(
        id=name,
        title=title,
        alt="; ".join(f"{row.concurrency}: {digits(each.value)} ms" for row, each in rows),
        x=Measure("requests at a time", scale="log2"),
        y=y,
        series=[Series("projected, with its 80 % band", "a", points)],
        marks=[Mark(most, f"memory holds {most:,}")] if held else [],
        pick=study.traffic.concurrency,
    )


def low_end(each: Quantity) -> float:
    """Of its band; the value where it has none."""
    return each.value if each.low is None else each.low


def high_end(each: Quantity) -> float:
    """Of its band; the value where it has none."""
    return each.value if each.high is None else each.high


def _arrival_plot(study: ProjectionStudy) -> Chart:
    rows = study.arrivals
    rates = [each.load.rate or 0.0 for each in rows]
    half = [each.ttft_ms["p50"] or 0.0 for each in rows]
    most = [(each.ttft_ms["p90"] or 0.0, *_ends_of_p90(each, "ttft_ms")) for each in rows]
    return Chart(
        id="load-arrivals",
        title="Time to first token when requests come by themselves",
        alt="; ".join(
            f"{digits(rate)} requests/s: {digits(value)} ms"
            for rate, (value, *_) in zip(rates, most, strict=True)
        ),
        x=Measure("requests a second", "requests/s", start=0),
        y=Measure("TTFT (ms)", "ms", "log"),
        series=[
            Series("half of the requests (p50)", "c", list(zip(rates, half, strict=True))),
            Series(
                "9 of 10 (p90), with its 80 % band",
                "a",
                [(rate, *values) for rate, values in zip(rates, most, strict=True)],
                words=[_arrival_words(each) for each in rows],
            ),
        ],
    )


def _arrival_words(each: ServingProjection) -> str:
    spreads = (("TTFT", each.ttft_ms), ("TPOT", each.tpot_ms))
    return "\n".join(
        f"{name}: p50 {digits(spread['p50'] or 0)}, p90 {digits(spread['p90'] or 0)}, "
        f"p99 {digits(spread['p99'] or 0)} ms"
        for name, spread in spreads
    )


def _ends_of_p90(each: ServingProjection, name: str) -> tuple[float, float]:
    bands = each.bands[name]
    ends = bands["p90"] if isinstance(bands, Mapping) else None
    value = getattr(each, name)["p90"] or 0.0
    return ends or (value, value)


def _arrivals(study: ProjectionStudy) -> Table:
    """Requests that come by themselves: percentiles, simulated one by one."""
    return Table(
        title="When requests come by themselves (open loop)",
        columns=[
            "requests/s", "TTFT p50 (ms)", "TTFT p90 (ms)", "80 % band of p90",
            "TPOT p50 (ms)", "TPOT p90 (ms)", "80 % band of p90", "queue, mean",
        ],
        rows=[_arrival_row(each) for each in study.arrivals],
        note=f"{study.arrivals[0].requests:,} requests by Poisson arrivals, simulated one by one "
        "(serve-sim), at shares of the requests/s that the closed loop reaches.",
        open=True,
    )  # fmt: skip


def _arrival_row(each: ServingProjection) -> list[str]:
    cells = [digits(each.load.rate or 0.0)]
    for name in ("ttft_ms", "tpot_ms"):
        spread, (low, high) = getattr(each, name), _ends_of_p90(each, name)
        cells += [digits(spread[level] or 0.0) for level in ("p50", "p90")]
        cells.append(f"{digits(low)} to {digits(high)}")
    return [*cells, digits(each.queue_mean)]


def _routed_plot(study: ProjectionStudy) -> Chart:
    lines: dict[str, list[RoutedStep]] = {}
    for step in study.routed:
        lines.setdefault(step.routing, []).append(step)
    return Chart(
        id="routing-distinct",
        title="Distinct experts that a layer of the busiest GPU reads, by routing",
        alt="; ".join(f"{s.routing}, {s.concurrency}: {s.most_distinct:.3g}" for s in study.routed),
        x=Measure("requests at a time", scale="log2"),
        y=Measure("experts read by the busiest GPU", "experts", start=0),
        series=[
            Series(
                name,
                hue,
                [(step.concurrency, step.most_distinct) for step in steps],
                "dashed" if name == EVEN else "line",
                [f"TPOT {step.tpot_ms:.2f} ms" for step in steps],
            )
            for (name, steps), hue in zip(lines.items(), "dab", strict=False)
        ],
        caption="Experts whole on every GPU. Fewer to read makes small steps faster; a busier GPU "
        "makes large ones slower.",
    )


def _routed_table(study: ProjectionStudy) -> Table:
    even = {step.concurrency: step.tpot_ms for step in study.routed if step.routing == EVEN}
    return Table(
        title="Routing sensitivity",
        columns=[
            "routing", "requests at a time", "experts read", "busiest GPU over mean",
            "TPOT (ms)", "against even", "provenance of the routing",
        ],
        rows=[
            [
                step.routing,
                f"{step.concurrency:,}",
                digits(step.most_distinct),
                times(step.imbalance),
                f"{step.tpot_ms:.2f}",
                "" if step.routing == EVEN else _change(step.tpot_ms / even[step.concurrency] - 1),
                step.provenance.value,
            ]
            for step in study.routed
        ],
        note="Experts whole on every GPU (EP). The placed map was fitted on other tokens than it "
        "is judged on.",
        open=True,
    )  # fmt: skip


def _change(share: float) -> str:
    """'+0.3 %', and no sign where nothing is left of it."""
    rounded = round(100 * share, 1)
    return f"{rounded:+.1f} %" if rounded else "0 %"


def _models(study: ProjectionStudy) -> Table:
    return Table(
        title=f"What other models cost on the same hardware, {load_words(study)}",
        columns=[
            "model", "format", "split", "GiB a GPU", "tokens/s a user", "tokens/s a GPU",
            "USD a million output tokens", "80 % band", "kWh a million", "provenance",
        ],
        rows=[_model_row(row, study) for row in study.models],
        note="Each in the fastest format that the GPU multiplies and the split with the least time "
        "a token that fits; models that do not fit are left out. Dense models have no routed "
        "experts. All GPUs are paid for; energy is assumed: all GPUs at full power, without host.",
        open=True,
    )  # fmt: skip


def _as_fast(study: ProjectionStudy) -> list[Table]:
    """What each model costs when its users wait no longer."""
    if not study.as_fast:
        return []
    chosen = study.chosen
    assert chosen.tpot_ms and chosen.ttft_ms
    return [
        Table(
            title=f"Models that serve users as fast: {digits(chosen.tpot_ms.value)} ms a token, "
            f"{digits(chosen.ttft_ms.value)} ms to the first",
            columns=[
                "model", "parameters (active)", "deployment", "requests at a time",
                "weights in all (GiB)", "KV a token (bytes)", "tokens/s a GPU",
                "USD a million output tokens", "kWh a million",
            ],
            rows=[_as_fast_row(cost) for cost in study.as_fast],
            note="Each in its cheapest deployment on this hardware with as many requests as keep "
            f"those times (moeprof advise), of {study.traffic.input_len:,} + "
            f"{study.traffic.output_len:,} tokens, with even routing.",
            open=True,
        )
    ]  # fmt: skip


def _billions(parameters: int) -> str:
    return f"{parameters / 1e9:.3g} B"


def _as_fast_row(cost: ModelCost) -> list[str]:
    active = f"{_billions(cost.total_parameters)} ({_billions(cost.active_parameters)})"
    option = cost.option
    if option is None:
        return [cost.model, active, cost.problem, *[""] * 6]
    split = option.parallelism
    name = f"TP {split.tp}" + (f" \u00d7 DP {split.dp}" if split.dp > 1 else "")
    name += f", EP {split.ep}" if split.ep > 1 else ""
    usd_a_million, energy = option.cost_per_million_tokens, option.energy_wh_per_million_tokens
    return [
        cost.model,
        active,
        f"{option.precision.upper()}, {name}",
        f"{option.concurrency:,}",
        f"{(cost.weights_bytes or 0) / GIB:,.0f}",
        f"{cost.kv_bytes_per_token or 0:,}",
        digits(option.output_tok_s_per_gpu),
        digits(usd_a_million.value) if usd_a_million else "no price stated",
        digits(energy.value / 1e3) if energy else "no power stated",
    ]


def _model_row(row: DeploymentProjection, study: ProjectionStudy) -> list[str]:
    cost = row.cost_per_million_tokens
    assert row.tpot_ms is not None
    return [
        row.ledger.model,
        row.ledger.precision.upper(),
        split_name(row),
        held_bytes(row.memory["total"] - row.memory["reserve"]).removesuffix(" GiB"),
        digits(user_tok_s(row)),
        digits(gpu_tok_s(row, study)),
        digits(cost.value) if cost else "no price stated",
        f"{digits(low_end(cost))} to {digits(high_end(cost))}" if cost else "",
        _kwh(row, study),
        row.tpot_ms.provenance.value,
    ]


def _kwh(row: DeploymentProjection, study: ProjectionStudy) -> str:
    assert row.output_tok_s is not None
    energy = energy_per_million(study.cluster, row.output_tok_s)
    return digits(energy.value / 1e3) if energy else "no power stated"
