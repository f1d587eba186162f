"""How fast and at what cost the target serves, and where the time of a token goes."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.projection import FAMILIARITIES, DeploymentProjection
from moeprof.quantity import Quantity
from moeprof.report.blocks import (
    GAP,
    Axis,
    Bar,
    Bars,
    Block,
    Part,
    Section,
    Table,
    Tick,
    axis_ticks,
)
from moeprof.report.charts import Mark
from moeprof.report.contents import ReportContents
from moeprof.report.levers import Lever
from moeprof.report.projected_words import deployed, digits, load_words, split_name
from moeprof.report.projecting import ProjectionStudy
from moeprof.report.sections.memory import PIECES
from moeprof.report.wording import GIB, held_bytes, percent

# What is drawn as one piece of a token's time; the table has every operation.
OPERATION_PIECES: dict[str, tuple[str, tuple[str, ...]]] = {
    "routed experts": ("a", ("routed experts",)),
    "attention": ("b", ("attention",)),
    "dense weights and head": ("c", ("dense weights", "head")),
    "launches and host": ("d", ("launches", "host")),
    "all-reduce and dispatch": ("e", ("all-reduce", "dispatch")),
    "prompts of others": (
        "room",
        (
            *("prefill: routed experts", "prefill: dense weights", "prefill: attention"),
            *("prefill: all-reduce", "prefill: host"),
        ),
    ),
}


def speed_section(contents: ReportContents) -> Section | None:
    """Memory, speed, time by operation and what it hangs on."""
    title, study = "Projected speed", contents.projection
    if study is None:
        reason = contents.missing.get("projection")
        return Section("speed", title, [f"Not shown: {reason}."], []) if reason else None
    blocks: list[Block] = [
        _figures(study.chosen),
        _memory(study),
        _operations(study),
        _operation_table(study),
        _levers(study),
    ]
    return Section("speed", title, _lead(contents, study), blocks)


def routing_words(contents: ReportContents, study: ProjectionStudy) -> str:
    """Whose routing the speed is projected with."""
    if study.routing == "recorded":
        return "Steps read the experts that this recording's tokens ask for."
    if study.routing == "even":
        if not contents.target.moe_layers:
            return "It has no routed experts."
        why = contents.missing.get("routed speed", "")
        return f"Steps read the experts of even routing, not of this recording: {why}."
    return (
        f"The routing of {contents.recorded.name} is carried over to {contents.target.name} by "
        f"{study.routing}: nobody recorded the latter, so every time and rate is assumed."
    )


def _lead(contents: ReportContents, study: ProjectionStudy) -> list[str]:
    near = FAMILIARITIES[study.chosen.familiarity or ""]
    return [
        f"{deployed(study)}, under {load_words(study)}, each replaced when it ends: the fastest "
        "split that fits, in the fastest format that fits, of those that the GPU multiplies if one "
        "does.",
        routing_words(contents, study),
        f"Bands hold 80 % of measured deployments as far off from the fitted ones: {near}.",
    ]


def _figures(chosen: DeploymentProjection) -> Table:
    named: dict[str, Quantity | None] = {
        "time per output token": chosen.tpot_ms,
        "time to first token": chosen.ttft_ms,
        "output tokens of all GPUs": chosen.output_tok_s,
        "all tokens": chosen.total_tok_s,
        "a million output tokens": chosen.cost_per_million_tokens,
    }
    rows = [
        [name, digits(each.value), _band(each), each.unit, each.provenance.value]
        for name, each in named.items()
        if each is not None
    ]
    cost = chosen.cost_per_million_tokens
    return Table(
        title="Speed and cost",
        columns=["", "value", "80 % band", "unit", "provenance"],
        rows=rows,
        note=f"Price: {cost.source.split('; ')[0]}." if cost else "Nobody states a price.",
        open=True,
    )


def _band(each: Quantity) -> str:
    if each.low is None or each.high is None:
        return "unknown"
    return f"{digits(each.low)} to {digits(each.high)}"


def _memory(study: ProjectionStudy) -> Bars:
    """One bar a split, with the KV of the load."""
    rows = [_at_load(line, study) for line in study.splits]
    capacity = rows[0].ledger.capacity.value
    usable = capacity - rows[0].ledger.classes["reserve"].value
    end = 1.02 * max(capacity, *(_held(row) for row in rows))
    return Bars(
        id="speed-memory",
        title="Memory of the fullest GPU under this load, by split",
        alt="; ".join(f"{split_name(row)}: {_verdict(row)}" for row in rows),
        bars=[Bar(split_name(row), _stack(row, end), _verdict(row), row.fits) for row in rows],
        axis=Axis(
            "GiB on one GPU",
            [
                Tick(at * GIB / end, f"{at:g}", minor=order % 2 == 1)
                for order, at in enumerate(axis_ticks(0, end / GIB, 6))
            ],
        ),
        marks=[
            Mark(usable / end, f"usable {held_bytes(usable)}"),
            Mark(capacity / end, f"card {held_bytes(capacity)}"),
        ],
    )


def _at_load(line: Sequence[DeploymentProjection], study: ProjectionStudy) -> DeploymentProjection:
    return next(row for row in line if row.concurrency == study.traffic.concurrency)


def _held(row: DeploymentProjection) -> float:
    return row.memory["total"] - row.memory["reserve"]


def _stack(row: DeploymentProjection, end: float) -> list[Part]:
    sizes = {name: (hue, sum(row.memory[c] for c in of)) for name, (hue, of) in PIECES.items()}
    sizes["KV and states of the requests"] = ("room", row.memory["kv"] + row.memory["state"])
    return [
        Part(name, hue, size / end, f"{name}: {held_bytes(size)}")
        for name, (hue, size) in sizes.items()
        if size
    ]


def _verdict(row: DeploymentProjection) -> str:
    if row.fits:
        return f"fits, {row.max_concurrency or 0:,} requests at most"
    return f"does not fit, {held_bytes(max(-row.ledger.free_bytes, 0))} short"


def _operations(study: ProjectionStudy) -> Bars:
    chosen = study.chosen.ledger.parallelism
    rows = next(line for line in study.splits if line[0].ledger.parallelism == chosen)
    end = 1.02 * max(sum(row.operations.values()) for row in rows)
    return Bars(
        id="speed-operations",
        title="Time of an output token by operation, as requests at a time rise",
        alt="; ".join(f"{row.concurrency} requests: {_tpot(row)}" for row in rows),
        bars=[Bar(f"{row.concurrency:,}", _parts(row, end), _tpot(row), None) for row in rows],
        axis=Axis(
            "ms of an output token",
            [Tick(at / end, f"{at:g}") for at in axis_ticks(0, end, 6)],
        ),
        marks=[],
        caption="Even routing. Prompts of other requests are computed between a request's tokens.",
    )


def _parts(row: DeploymentProjection, end: float) -> list[Part]:
    whole = sum(row.operations.values())
    parts = []
    for name, (hue, operations) in OPERATION_PIECES.items():
        ms = sum(row.operations.get(each, 0.0) for each in operations)
        if ms:
            words = f"{name}: {digits(ms)} ms, {percent(ms / whole)}"
            parts.append(Part(name, hue, ms / end, words))
    return parts


def _tpot(row: DeploymentProjection) -> str:
    assert row.tpot_ms is not None
    return f"{digits(row.tpot_ms.value)} ms"


def _operation_table(study: ProjectionStudy) -> Table:
    chosen = study.chosen
    assert chosen.tpot_ms is not None
    ordered = sorted(chosen.operations.items(), key=lambda each: -each[1])
    return Table(
        title=f"Time of an output token by operation, {load_words(study)}",
        columns=["operation", "ms", "share", "provenance"],
        rows=[
            [name, digits(ms), percent(chosen.share[name]), chosen.tpot_ms.provenance.value]
            for name, ms in ordered
        ],
    )


def _levers(study: ProjectionStudy) -> Bars:
    """A tornado: each bar from the faster to the slower end, and a line where we stand."""
    assert study.chosen.tpot_ms is not None
    here = study.chosen.tpot_ms.value
    end = 1.02 * max(lever.slow_ms for lever in study.levers)
    return Bars(
        id="speed-levers",
        title="What the time of an output token hangs on",
        alt="; ".join(f"{lever.name}: {_ends(lever)}" for lever in study.levers),
        bars=[
            Bar(lever.name, _swing(lever, here, end), _ends(lever), None) for lever in study.levers
        ],
        axis=Axis(
            "ms of an output token",
            [Tick(at / end, f"{at:g}") for at in axis_ticks(0, end, 6)],
        ),
        marks=[Mark(here / end, f"projected {digits(here)} ms")],
        caption="Each thing changed alone. The band is what the law may be off by; the others say "
        "what a change would do.",
    )


def _swing(lever: Lever, here: float, end: float) -> list[Part]:
    less, more = min(here, lever.fast_ms), max(here, lever.slow_ms)
    fast = f"{lever.fast}: {digits(lever.fast_ms)} ms"
    slow = f"{lever.slow}: {digits(lever.slow_ms)} ms"
    return [
        Part("", GAP, less / end, ""),
        Part("faster", "a", (here - less) / end, fast),
        Part("slower", "b", (more - here) / end, slow),
    ]


def _ends(lever: Lever) -> str:
    return f"{lever.fast} {digits(lever.fast_ms)}, {lever.slow} {digits(lever.slow_ms)}"
