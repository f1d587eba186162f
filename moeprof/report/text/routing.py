"""How far a projection hangs on routing, and what memory and maps are worth, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from moeprof.projection.routing import (
    GibValue,
    PlacedSpeed,
    RoutingCell,
    RoutingSensitivity,
)
from moeprof.projection.routing.sensitivity import SensitivityRow
from moeprof.quantity import Quantity
from moeprof.report.text.layout import printable, table, wrapped
from moeprof.report.wording import counted, held_bytes, times

_FIGURES: dict[str, Callable[[RoutingCell], str]] = {
    "distinct experts of a layer": lambda cell: f"{cell.distinct:.1f}",
    "read by the rank that reads most": lambda cell: f"{cell.most_distinct:.2f}",
    "assignments of the busiest rank over the mean": lambda cell: times(cell.imbalance),
    "ms in MoE layers a step": lambda cell: _ms(cell.moe_ms),
}


def _ms(time: Quantity | None) -> str:
    return "-" if time is None else f"{time.value:.3g}"


def sensitivity_text(result: RoutingSensitivity) -> str:
    """A table a figure: tokens of a step down, routings across."""
    head = (
        f"Routing sensitivity of {result.model}: {result.layers} MoE layers of {result.experts} "
        f"experts, top-{result.top_k}, {result.phase} steps on {counted(result.ranks, 'rank')}."
    )
    figures = dict(_FIGURES)
    if all(cell.moe_ms is None for row in result.rows for cell in row.cells):
        figures.popitem()
    if result.ranks == 1:
        del figures["read by the rank that reads most"]
        del figures["assignments of the busiest rank over the mean"]
    columns = ["tokens", *result.routings]
    parts = [wrapped(head)]
    for name, shown in figures.items():
        rows = [[f"{row.tokens:,}", *(shown(cell) for cell in row.cells)] for row in result.rows]
        parts.append(f"{name}\n{table(columns, rows)}")
    return "\n\n".join([*parts, wrapped(_judged(result)), *_provenance(result)])


def _judged(result: RoutingSensitivity) -> str:
    label = "" if result.label is None else f" labelled {printable(result.label)}"
    words = (
        f"Recorded: {result.judged_tokens:,} tokens of "
        f"{counted(result.judged_requests, 'request')} of {result.trace_model}{label}, of the half "
        f"of the recording, by {result.split}, that is judged."
    )
    if result.placement is not None:
        words += " Experts are placed by the other half"
        words += f" with {result.redundant} redundant." if result.redundant else "."
    if result.transfer is not None:
        words += (
            f" That {result.model} routes as far from even as {result.trace_model} is assumed "
            f"({result.transfer})."
        )
    times = [cell.moe_ms for row in result.rows for cell in row.cells if cell.moe_ms is not None]
    return words + _evidence(times)


def _evidence(times: Sequence[Quantity]) -> str:
    """Where milliseconds come from, and their bands, the widest of all."""
    found = dict.fromkeys(f"{time.source} ({time.provenance.value})" for time in times)
    words = f" Times: {'; '.join(found)}" if found else ""
    lows = [time.low / time.value for time in times if time.low is not None and time.value]
    highs = [time.high / time.value for time in times if time.high is not None and time.value]
    if lows and highs:
        words += f", 80 % bands within {min(lows):.2f} to {max(highs):.2f} times them"
    return words + ("." if words else "")


def _provenance(result: RoutingSensitivity) -> list[str]:
    """From which number of tokens on a recorded column is no longer measured."""
    place = len(result.routings) - 1
    kinds = [_kind(row, place) for row in result.rows]
    spans = []
    for kind in dict.fromkeys(kinds):
        tokens = [f"{row.tokens:,}" for row, k in zip(result.rows, kinds, strict=True) if k == kind]
        spans.append(f"{kind} at {', '.join(tokens)}")
    return [wrapped(f"Loads of the recorded columns: {'; '.join(spans)} tokens.")]


def _kind(row: SensitivityRow, place: int) -> str:
    return row.cells[place].provenance.value


def speeds_text(speeds: Sequence[PlacedSpeed], heading: str = "redundant") -> str:
    """A row a map."""
    columns = [heading, "read by a rank", "busiest rank", "tok/s", "gain", "load"]
    rows = [
        [
            speed.name,
            f"{speed.most_distinct:.2f}",
            times(speed.imbalance),
            f"{speed.tok_s:,.0f}",
            f"{100 * speed.gain:+.1f} %",
            speed.provenance.value,
        ]
        for speed in speeds
    ]
    return table(columns, rows)


def mix_speeds_text(speeds: Mapping[str, Sequence[PlacedSpeed]]) -> str:
    """A table a domain."""
    return "\n\n".join(f"{name}\n{speeds_text(rows, 'map')}" for name, rows in speeds.items())


def gib_text(value: GibValue) -> str:
    """What a GiB more on each GPU is worth, best use first."""
    head = (
        f"One GiB more on each of {counted(value.ranks, 'GPU')}, "
        f"{counted(value.sequences, 'sequence')} a step:"
    )
    columns = ["as", "tok/s per GiB", "tok/s", "with", "added", "takes", "load"]
    rows = [
        [
            use.use,
            f"{use.tok_s_per_gib:+,.1f}",
            f"{use.tok_s_before:,.1f}",
            f"{use.tok_s_after:,.1f}",
            counted(use.added, use.unit),
            held_bytes(use.added_bytes),
            use.provenance.value,
        ]
        for use in value.uses
    ]
    notes = [wrapped(f"Not as {use}: {why}.") for use, why in value.missing.items()]
    return "\n\n".join([wrapped(head), table(columns, rows), *notes])
