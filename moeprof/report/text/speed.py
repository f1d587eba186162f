"""Speed of a deployment: what users feel, where a token's time goes, and how sure that is."""

from __future__ import annotations

from moeprof.projection import FAMILIARITIES, DeploymentProjection, ProjectedTable
from moeprof.quantity import Quantity
from moeprof.report.text.layout import bar, table, wrapped
from moeprof.report.wording import counted

_BAR = 20


def speed_text(projection: DeploymentProjection) -> str:
    """Times, rates and cost with bands, then operations with their share and provenance."""
    named = {
        "time per output token": projection.tpot_ms,
        "time to first token": projection.ttft_ms,
        "output tokens": projection.output_tok_s,
        "all tokens": projection.total_tok_s,
        "a million output tokens": projection.cost_per_million_tokens,
    }
    rows = [_quantity(name, each) for name, each in named.items() if each is not None]
    parts = [
        wrapped(_title(projection)),
        table(["", "", "80 % band", "unit", "provenance"], rows),
        _operations(projection),
        wrapped(_trust(projection)),
    ]
    return "\n\n".join(parts)


def projected_table_text(done: ProjectedTable) -> str:
    """How many rows were predicted, and why the others were not."""
    lines = [f"{done.predicted:,} of {counted(done.rows, 'row')} predicted: {done.path}"]
    lines += [f"  {counted(count, 'row')}: {why}" for why, count in done.problems.items()]
    return "\n".join(lines)


def _title(projection: DeploymentProjection) -> str:
    held = projection.running or 0
    waits = projection.concurrency - held
    waiting = f"; memory holds {held:,.0f} of them, the others wait" if waits > 0.5 else ""
    return (
        f"Steady serving by {projection.engine}: {counted(projection.concurrency, 'request')} at a "
        f"time, {projection.input_len:,} tokens in and {projection.output_len:,} out{waiting}"
    )


def _quantity(name: str, each: Quantity) -> list[str]:
    band = "unknown" if each.low is None else f"{_digits(each.low)} to {_digits(each.high or 0)}"
    return [name, _digits(each.value), band, each.unit.ljust(6), each.provenance.value.rjust(9)]


def _operations(projection: DeploymentProjection) -> str:
    assert projection.tpot_ms is not None
    law = projection.tpot_ms.provenance.value
    ordered = sorted(projection.share.items(), key=lambda item: -item[1])
    rows = [
        [
            name,
            f"{projection.operations[name]:.2f}",
            f"{share:.1%}",
            ("measured" if name in projection.measured else law).rjust(9),
            bar(share, _BAR),
        ]
        for name, share in ordered
    ]
    return table(["of an output token", "ms", "share", "provenance", ""], rows)


def _trust(projection: DeploymentProjection) -> str:
    near = FAMILIARITIES[projection.familiarity or ""]
    return f"The band is that of deployments held out as far off as this one: {near}."


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
