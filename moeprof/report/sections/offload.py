"""How fast one user is served when the experts that do not fit stand in the host's memory."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.offload import OffloadPlan
from moeprof.report.blocks import Axis, Bar, Bars, Part, Section, Table, Tick
from moeprof.report.charts import Chart, Measure, Series
from moeprof.report.contents import ReportContents
from moeprof.report.offloading import speeds_by_policy
from moeprof.report.wording import GIB, held_bytes, percent, read_bytes

# How a resource is called and coloured.
RESOURCES = {
    "gpu": ("GPU memory", "a"),
    "link": ("link to the host", "b"),
    "cpu": ("CPU and its memory", "c"),
    "drive": ("drives", "room"),
    "overhead": ("launches", "d"),
}


def offload_section(contents: ReportContents) -> Section | None:
    """Speed by GPU memory, where the time goes, and what the numbers rest on."""
    title, plans = "Offload", contents.offload
    if not plans:
        reason = contents.missing.get("offload")
        return Section("offload", title, [f"Not shown: {reason}."], []) if reason else None
    best = plans[-1]
    lead = [
        f"{best.model} in {best.precision} on {best.hardware}, one request at a time, with the "
        f"experts that do not fit in the host's memory: {speed(best.tok_s)} tokens/s with the "
        f"whole card and policy {best.policy}, {speed(best.tok_s_low)} to "
        f"{speed(best.tok_s_high)} over the bands of the rates ({best.provenance}). No policy "
        f"exceeds {speed(best.tok_s_limit)}.",
        "A static list never fetches what it misses, the host's CPU computes it; LRU fetches every "
        "miss. So the policy that hits more may be the slower one.",
        *([f"The routing is carried over by {best.transfer}."] if best.transfer else []),
    ]
    return Section("offload", title, lead, [_plot(plans), _bars(plans), _table(plans), _rest(best)])


def speed(value: float) -> str:
    """Tokens a second to three digits."""
    return f"{value:.3g}"


def _plot(plans: Sequence[OffloadPlan]) -> Chart:
    sizes = [plan.memory.vram_bytes / GIB for plan in plans]

    def line(values: Sequence[float]) -> list[tuple[float, float]]:
        return list(zip(sizes, values, strict=True))

    best = [
        (size, plan.tok_s, plan.tok_s_low, plan.tok_s_high)
        for size, plan in zip(sizes, plans, strict=True)
    ]
    return Chart(
        id="offload-speed",
        title="Decode speed by GPU memory",
        alt="; ".join(
            f"{held_bytes(plan.memory.vram_bytes)}: {speed(plan.tok_s)} tokens/s" for plan in plans
        ),
        x=Measure("GiB of GPU memory used", "GiB", start=0),
        y=Measure("tokens/s", "tokens/s", start=0),
        series=[
            Series("the best, over the bands of all rates", "e", best, "band"),
            *(
                Series(name, hue, line(values), words=[_words(plan, name) for plan in plans])
                for (name, values), hue in zip(speeds_by_policy(plans).items(), "ca", strict=True)
            ),
            Series("no policy exceeds", "b", line([plan.tok_s_limit for plan in plans]), "dashed"),
        ],
        caption="Batch 1. What is not experts, the KV cache and a reserve take their place first.",
    )


def _words(plan: OffloadPlan, policy: str) -> str:
    hits = (percent(row.hit_ratio) for row in plan.rows if row.policy == policy)
    return f"{plan.slots:,} slots a layer, " + ", ".join(f"{each} hits" for each in hits)


def _bars(plans: Sequence[OffloadPlan]) -> Bars:
    return Bars(
        id="offload-time",
        title="Where the time of a token goes, with the best policy",
        alt="; ".join(f"{held_bytes(p.memory.vram_bytes)}: {p.bound} binds" for p in plans),
        bars=[
            Bar(
                held_bytes(plan.memory.vram_bytes),
                [
                    Part(name, hue, plan.share[key], f"{name}: {percent(plan.share[key])}")
                    for key, (name, hue) in RESOURCES.items()
                    if plan.share[key]
                ],
                f"{plan.policy}: {RESOURCES[plan.bound][0]} binds",
                None,
            )
            for plan in plans
        ],
        axis=Axis(
            "share of the critical path",
            [Tick(at / 100, f"{at} %", minor=at % 50 != 0) for at in (0, 25, 50, 75, 100)],
        ),
        marks=[],
        caption="What runs beside something longer costs nothing and is not in a bar.",
    )


def _table(plans: Sequence[OffloadPlan]) -> Table:
    rows = []
    for row in (row for plan in plans for row in plan.rows):
        moved = [read_bytes(row.bytes_per_token[name]) for name in ("link", "cpu", "drive")]
        band = f"{speed(row.tok_s_low)} to {speed(row.tok_s_high)}"
        rows.append(
            [
                held_bytes(row.vram_bytes),
                f"{row.slots:,}",
                row.policy,
                percent(row.hit_ratio),
                speed(row.tok_s),
                band,
                speed(row.tok_s_limit),
                *moved,
            ]
        )
    return Table(
        title="Offload as a table",
        columns=[
            "GPU memory", "slots a layer", "policy", "hit ratio", "tokens/s", "band",
            "no policy exceeds",
            "over the link a token", "by the CPU a token", "from drives a token",
        ],
        rows=rows,
    )  # fmt: skip


def _rest(plan: OffloadPlan) -> Table:
    return Table(
        title="What the speeds rest on",
        columns=["assumed"],
        rows=[[line] for line in plan.assumptions],
    )
