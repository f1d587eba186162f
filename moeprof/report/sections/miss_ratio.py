"""What an expert cache of each size misses, and the bytes that costs a token."""

from __future__ import annotations

from moeprof.cache import LruCurve
from moeprof.report.blocks import Block, Section, Table, axis_ticks
from moeprof.report.charts import SHARE, Chart, Mark, Measure, SecondAxis, Series
from moeprof.report.contents import PRECISIONS, ReportContents
from moeprof.report.curves import curve_points, near_cliff, resident_share, table_slots
from moeprof.report.sampled import followed_words
from moeprof.report.wording import count, counted, percent, read_bytes

POINTS = 256  # drawn of each curve


def miss_ratio_section(contents: ReportContents) -> Section:
    """Both curves in one plot, and tables of chosen sizes."""
    title = "Expert cache"
    layered, pooled = contents.layer_curve, contents.global_curve
    if layered is None or pooled is None:
        return Section("cache", title, [f"Not shown: {contents.missing['cache']}."], [])
    kind = "tokens of every phase" if layered.phase == "all" else f"{layered.phase} tokens"
    first = percent(layered.first_uses / layered.accesses)
    lead = [
        f"If only some experts fit in fast memory, each miss reads one expert from slower memory. "
        f"This is exact LRU, replayed over the {count(layered.tokens)} {kind} of the recording in "
        f"its own batches: {count(layered.accesses)} reads, of which {first} are an expert's "
        "first.",
        *followed_words(contents.info, contents.followed_tokens),
    ]
    if contents.transfer:
        lead.append(
            f"Curve and bytes are those of {contents.recorded.name}, not of {contents.target.name}."
        )
    blocks: list[Block] = [
        _plot(contents, layered, pooled),
        _table(contents, layered, "Per layer: every layer has its own slots"),
        _table(contents, pooled, "Global: one pool for all layers"),
    ]
    return Section("cache", title, lead, blocks)


def _plot(contents: ReportContents, layered: LruCurve, pooled: LruCurve) -> Chart:
    cycle = pooled.token_cycle / len(pooled.slots)
    size = contents.expert_bytes.get("bf16")
    reduced = [len(curve.slots) for curve in (layered, pooled) if len(curve.slots) > POINTS]
    return Chart(
        id="miss-ratio",
        title="Miss ratio of LRU, and bytes read for each token",
        alt=(
            "Miss ratio against the share of experts resident, falling from 100 % to "
            f"{percent(1 - layered.hit_ratio[-1])}; the global curve falls from the token cycle "
            f"of {pooled.token_cycle} slots on. Numbers in the tables below."
        ),
        x=Measure("share of all experts resident", SHARE, start=0, end=1),
        y=Measure("miss ratio (share of reads)", SHARE, start=0, end=1),
        right=_bytes_axis(layered, size) if size else None,
        series=[
            _line(contents, layered, "slots in every layer", "a"),
            _line(contents, pooled, "one pool for all layers", "b"),
        ],
        marks=[Mark(cycle, f"token cycle: {pooled.token_cycle} slots")],
        caption=f"Of the {max(reduced):,} sizes about {POINTS} are drawn." if reduced else "",
    )


def _line(contents: ReportContents, curve: LruCurve, name: str, hue: str) -> Series:
    indices = curve_points(curve, POINTS)
    points = [(resident_share(curve, curve.slots[i]), 1 - curve.hit_ratio[i]) for i in indices]
    words = [_words(contents, curve, i) for i in indices]
    return Series(name, hue, [(0.0, 1.0), *points], words=["no slots", *words])


def _bytes_axis(curve: LruCurve, expert_bytes: int) -> SecondAxis:
    """Bytes a token at each miss ratio: both curves replay the same reads, so one axis serves."""
    most = curve.accesses / curve.tokens * expert_bytes
    unit, size = next(
        (pair for pair in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if most >= 2 * pair[1]),
        ("bytes", 1.0),
    )
    ticks = [(at * size / most, f"{at:g}") for at in axis_ticks(0, most / size, 4)]
    return SecondAxis(f"{unit} read a token (BF16)", ticks)


def _words(contents: ReportContents, curve: LruCurve, index: int) -> str:
    slots, misses = curve.slots[index], curve.misses_per_token[index]
    size = contents.expert_bytes.get("bf16")
    cost = f", {read_bytes(misses * size)} a token in BF16" if size else ""
    return f"{counted(slots, 'slot')}: {percent(curve.hit_ratio[index])} hits{cost}"


def _table(contents: ReportContents, curve: LruCurve, title: str) -> Table:
    rows = []
    for slots in table_slots(curve):
        share = percent(resident_share(curve, slots))
        rows.append([f"{slots:,}", share, *_cells(contents, curve, slots)])
    return Table(
        title=title,
        columns=[
            "slots",
            "resident",
            "hit ratio",
            "misses a token",
            *(f"{name.upper()} bytes a token" for name in PRECISIONS if contents.expert_bytes),
        ],
        rows=rows,
        note=(
            f"The token cycle is {curve.token_cycle} slots in all. Policy LRU, contract "
            f"{curve.contract}: all experts of a step's layer are looked up before any is replaced."
        ),
    )


def _cells(contents: ReportContents, curve: LruCurve, slots: int) -> list[str]:
    if near_cliff(curve, slots):
        return ["cliff", "cliff", *("cliff" for _ in contents.expert_bytes)]
    misses = curve.misses_per_token[slots - 1]
    sizes = [read_bytes(misses * size) for size in contents.expert_bytes.values()]
    return [percent(curve.at(slots)), f"{misses:,.3g}", *sizes]
