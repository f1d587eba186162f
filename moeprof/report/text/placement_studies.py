"""Redundancy, rebalancing and mixes of domains, in words."""

from __future__ import annotations

from moeprof.placement.mix import MixResult
from moeprof.placement.online import OnlineResult, Rebalance
from moeprof.placement.replay import Interval
from moeprof.placement.sweep import RedundancySweep, SweepRow
from moeprof.quantity import Quantity
from moeprof.report.placement_figures import PlacementFigures
from moeprof.report.text.layout import clipped, pairs, table, wrapped
from moeprof.report.wording import counted, held_bytes, percent

_SHOWN = 24  # rebalances; more are summed up


def sweep_text(sweep: RedundancySweep) -> str:
    """A row a number of redundant experts."""
    formats = list(sweep.rows[0].redundant_bytes_per_gpu)
    head = (
        f"{sweep.solver}: {sweep.experts} experts of {counted(sweep.layers, 'layer')} on "
        f"{sweep.gpus} GPUs, split by {sweep.split.value}, judged on {sweep.tokens:,} tokens in "
        f"{counted(sweep.steps, 'step')} {_batch(sweep.batch)}."
    )
    columns = ["redundant", "slots/GPU", "imbalance", "of a step", "busiest", "p99"]
    known = sweep.resamples > 1
    notes = (
        "Imbalance: busiest GPU over the mean, of the window's sum; of a step: what a step waits "
        "for, layer by layer, over what it would were every layer even; busiest: that wait in "
        f"assignments, mean and 99th percentile over steps (even: {sweep.even_mean:,.1f})."
    )
    if known:
        notes += f" \u00b1 is the 95 % interval over requests, {sweep.resamples} samples."
    rows = [_sweep_row(row, known) for row in sweep.rows]
    parts = [wrapped(head), table(columns, rows)]
    parts += [_memory_table(sweep.rows, formats)] if formats else []
    parts += [_speed_table(sweep.rows)] if sweep.rows[0].tok_s else []
    return "\n\n".join([*parts, wrapped(notes)])


def _memory_table(rows: list[SweepRow], formats: list[str]) -> str:
    """What the redundant slots of all layers take on each GPU."""
    columns = ["redundant", *(f"{name} on a GPU" for name in formats)]
    sizes = [[held_bytes(row.redundant_bytes_per_gpu[name]) for name in formats] for row in rows]
    return table(columns, [[f"{row.redundant:,}", *s] for row, s in zip(rows, sizes, strict=True)])


def _speed_table(rows: list[SweepRow]) -> str:
    """Projected output tokens/s, where they were asked for."""
    columns = ["redundant", "output tok/s", "80 % band", "", "in memory"]
    return table(columns, [_speed_row(row, row.tok_s) for row in rows if row.tok_s])


def _speed_row(row: SweepRow, speed: Quantity) -> list[str]:
    band = "-" if speed.low is None else f"{speed.low:,.0f} to {speed.high:,.0f}"
    fits = "fits" if row.fits else "does not fit"
    return [f"{row.redundant:,}", f"{speed.value:,.0f}", band, speed.provenance.value, fits]


def _sweep_row(row: SweepRow, known: bool) -> list[str]:
    cells = [f"{row.redundant:,}", f"{row.slots_per_gpu}"]
    cells += [_spread(row.imbalance, known), _spread(row.step_imbalance, known)]
    return [*cells, f"{row.busiest_mean.value:,.1f}", f"{row.busiest_p99.value:,.1f}"]


def _spread(interval: Interval, known: bool) -> str:
    if not known or interval.high is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} \u00b1{interval.high - interval.value:.3f}"


def online_text(result: OnlineResult) -> str:
    """Every rebalance, then what all of them came to."""
    head = (
        f"{result.solver}: {counted(result.steps, 'step')} {_batch(result.batch)}, solved anew "
        f"every {result.interval:,} for the last {result.window:,}."
    )
    columns = ["before step", "imbalance", "after", "moved", "seconds", "saved/step", "pays after"]
    rows = [_rebalance_row(made) for made in result.rebalances[:_SHOWN]]
    more = len(result.rebalances) - len(rows)
    figures = {
        "step imbalance": f"{result.mean_online:.4f} rebalanced, {result.mean_static:.4f} with the "
        f"first map kept, {result.mean_linear:.4f} in order of id",
        "experts moved": f"{result.moved_slots:,}{_moved_bytes(result)}",
        "time": _time(result),
    }
    notes = (
        "Imbalance and after: of the steps that were solved for. Saved: assignments that a step of "
        "the next interval waits for less than under the map before."
    )
    parts = [wrapped(head), table(columns, rows)]
    parts += [f"... and {counted(more, 'rebalance')} more"] if more else []
    return "\n\n".join([*parts, pairs(figures), wrapped(notes)])


def _rebalance_row(made: Rebalance) -> list[str]:
    seconds = "-" if made.moves.seconds is None else f"{made.moves.seconds.value:.3g}"
    pays = "-" if made.pays_after_steps is None else f"{made.pays_after_steps:,.0f} steps"
    moved = f"{made.moves.slots:,}" if made.taken else "left out"
    figures = [f"{made.imbalance_before:.3f}", f"{made.imbalance_after:.3f}"]
    return [f"{made.step:,}", *figures, moved, seconds, f"{made.saved:,.1f}", pays]


def _moved_bytes(result: OnlineResult) -> str:
    if result.expert_bytes is None:
        return ""
    return f", {held_bytes(result.moved_slots * result.expert_bytes)} of weights"


def _time(result: OnlineResult) -> str:
    moves, each = result.move_seconds, result.seconds_per_assignment
    if moves is None or each is None or result.seconds_saved is None:
        return "not known: name the hardware with its links (--hardware 2x8xh200+ib-ndr-400)"
    verdict = "it pays" if result.seconds_saved > moves.value else "it does not pay"
    return (
        f"{moves.value:.3g} s of moves ({moves.provenance.value}), {result.seconds_saved:.3g} s of "
        f"waiting saved ({each.provenance.value}: {each.source}): {verdict}"
    )


def mix_text(result: MixResult) -> str:
    """The matrix, then the maps for all domains."""
    head = (
        f"{result.solver} on {result.gpus} GPUs, {result.redundant} redundant: fitted on one half "
        "of a domain's requests (rows), judged on the other half of each (columns, by number)."
    )
    columns = ["fitted on", *(str(n) for n in range(1, len(result.domains) + 1)), "worst"]
    names = [f"{n} {clipped(name, 22)}" for n, name in enumerate(result.domains, 1)]
    rows = [_mix_row(name, row) for name, row in zip(names, result.matrix, strict=True)]
    rows += [
        _mix_row("in order of id", result.linear),
        _mix_row("all, alike", result.mix),
        _mix_row("for the worst", result.robust),
    ]
    words = (
        f"Worst domain: {result.worst_mix:.4f} with all weighted alike, "
        f"{result.worst_robust:.4f} with the map made for the worst{_change(result)}; on the "
        f"halves fitted on {result.worst_mix_fit:.4f} and {result.worst_robust_fit:.4f}."
    )
    return "\n\n".join([wrapped(head), table(columns, rows), wrapped(words)])


def _change(result: MixResult) -> str:
    """How much nearer to even the worst domain has come."""
    if result.worst_mix <= 1:
        return ""
    change = (result.worst_robust - 1) / (result.worst_mix - 1) - 1
    return f", {percent(abs(change))} {'less' if change <= 0 else 'more'} above even"


def _mix_row(name: str, row: list[float]) -> list[str]:
    return [name, *(f"{value:.3f}" for value in row), f"{max(row):.3f}"]


def _batch(batch: int | None) -> str:
    return "as recorded" if batch is None else f"of {counted(batch, 'request')} at a time"


def placement_figures_text(result: PlacementFigures) -> str:
    """Where the figures are, and why some are not there."""
    lines = [*result.figures, *(f"no {name}: {why}" for name, why in result.missing.items())]
    return "\n".join(wrapped(line) for line in lines)
