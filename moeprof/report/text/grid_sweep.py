"""A sweep in words: what was projected, what could not be, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moeprof.report.text.layout import clipped, table, wrapped
from moeprof.report.wording import counted
from moeprof.sweep import Sweep

_REASONS, _FRONT = 8, 24  # lines; more are summed up
_SAME = ("model", "hardware", "engine", "precision", "kv_dtype", "input_len", "output_len")


def grid_sweep_text(sweep: Sweep) -> str:
    """Counts, reasons of what is no deployment, and a row a point of the front."""
    head = (
        f"{counted(sweep.points, 'deployment')} projected into {sweep.path}, "
        f"{sweep.fitting:,} of them fit; {sweep.failed:,} points of the grid are none."
    )
    parts = [wrapped(head)]
    if sweep.reasons:
        parts.append(_reasons(sweep))
    if sweep.pareto:
        parts += [wrapped(_words(sweep.pareto)), _front(sweep.pareto)]
    return "\n\n".join(parts)


def _reasons(sweep: Sweep) -> str:
    shown = list(sweep.reasons.items())[:_REASONS]
    lines = [f"{count:8,}  {clipped(why, 68)}" for why, count in shown]
    left = len(sweep.reasons) - len(shown)
    return "\n".join([*lines, *([f"          and {left:,} more reasons"] if left else [])])


def _words(front: Sequence[dict[str, Any]]) -> str:
    same = [f"{name} {front[0][name]}" for name in _SAME if _alike(front, name)]
    return (
        f"Pareto front, {counted(len(front), 'deployment')}: no other serves more tokens/s a GPU "
        f"at as many tokens/s a user. {', '.join(same)}"
    ).rstrip()


def _front(front: Sequence[dict[str, Any]]) -> str:
    named = [name for name in _SAME if not _alike(front, name)]
    columns = [*named, "TP", "EP", "DP", "PP", "at a time"]
    columns += ["tok/s/user", "tok/s/GPU", "TTFT ms", "$/M"]
    rows = []
    for row in front[:_FRONT]:
        split = [row[name] for name in ("tp", "ep", "dp", "pp", "concurrency")]
        cost = row["usd_per_million_tokens"]
        speeds = [_digits(row[name]) for name in ("tok_s_per_user", "tok_s_per_gpu", "ttft_ms")]
        price = "-" if cost is None else _digits(cost)
        rows.append([*(row[name] for name in named), *split, *speeds, price])
    lines = table(columns, rows, left=len(named))
    left = len(front) - len(rows)
    return lines + (f"\nand {left:,} more; --json has all" if left else "")


def _alike(front: Sequence[dict[str, Any]], name: str) -> bool:
    return len({row[name] for row in front}) == 1


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
