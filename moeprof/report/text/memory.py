"""The memory ledger of a deployment, in full."""

from __future__ import annotations

from moeprof.projection import DeploymentProjection, MemoryLedger
from moeprof.report.text.layout import bar, pairs, table, wrapped
from moeprof.report.wording import gib, held_bytes, read_bytes

_BAR = 20


def ledger_text(ledger: MemoryLedger) -> str:
    """Every class on the fullest rank with its provenance, then whether it fits."""
    most = max(ledger.capacity.value, ledger.total.value)
    rows = [
        [name, gib(size.value), size.provenance.value, bar(size.value / most, _BAR)]
        for name, size in ledger.classes.items()
        if size.value
    ]
    rows += [
        ["total", gib(size.value), size.provenance.value, bar(size.value / most, _BAR)]
        for size in (ledger.total,)
    ]
    rows.append(["card", gib(ledger.capacity.value), ledger.capacity.provenance.value, ""])
    body = table(
        ["on one GPU", "GiB", "provenance", ""], [[r[0], r[1], r[2].rjust(9), r[3]] for r in rows]
    )
    sources = pairs(_sources(ledger))
    return "\n\n".join([wrapped(_title(ledger)), body, wrapped(_verdict(ledger)), sources])


def projection_text(projection: DeploymentProjection) -> str:
    """The ledger, what the requests asked for, and the bound on speed."""
    lines = [ledger_text(projection.ledger)]
    length = projection.input_len + projection.output_len
    if length:
        lines.append(
            wrapped(
                f"KV is that of {projection.concurrency:,} requests of {length:,} tokens; "
                f"{projection.max_concurrency:,} fit at a time."
            )
        )
    bound, read = projection.decode_bound, projection.decode_read
    if projection.fits:
        speed = (
            f"Decode at batch 1 is bounded by {bound.value:,.0f} tokens/s "
            f"({read_bytes(read.value)} of weights a step at peak bandwidth, {bound.provenance}); "
            "real engines reach a fraction of it."
        )
        lines.append(wrapped(speed))
    return "\n\n".join(lines)


def _title(ledger: MemoryLedger) -> str:
    split = ledger.parallelism
    return (
        f"{ledger.model} in {ledger.precision} on {ledger.hardware}, TP {split.tp}, EP {split.ep}, "
        f"DP {split.dp}: memory of the fullest rank"
    )


def _verdict(ledger: MemoryLedger) -> str:
    if not ledger.fits:
        return f"Does not fit: {held_bytes(-ledger.free_bytes)} short on every GPU."
    return (
        f"Fits, {held_bytes(ledger.free_bytes)} free. Room for {ledger.max_kv_tokens:,} tokens of "
        f"KV at {ledger.kv_bytes_per_token:,} bytes a token and rank."
    )


def _sources(ledger: MemoryLedger) -> dict[str, str]:
    return {
        "weights": ledger.classes["routed"].source,
        "reserve": ledger.classes["reserve"].source,
        "card": ledger.capacity.source,
    }
