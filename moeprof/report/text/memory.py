"""Memory ledgers: one in full, or several side by side."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.model import TENSOR_CLASSES
from moeprof.projection import MemoryLedger
from moeprof.report.text.layout import bar, pairs, table, wrapped
from moeprof.report.wording import gib, held_bytes

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


def ledgers_text(ledgers: Sequence[MemoryLedger]) -> str:
    """One column a precision; GiB on the fullest rank, and tokens of KV that fit beside."""
    if not ledgers:
        return "No memory ledger."
    names = [*TENSOR_CLASSES, "kv", "reserve"]
    rows = [[name, *(gib(lg.classes[name].value) for lg in ledgers)] for name in names]
    rows += [
        ["total", *(gib(ledger.total.value) for ledger in ledgers)],
        ["card", *(gib(ledger.capacity.value) for ledger in ledgers)],
        ["fits", *("yes" if ledger.fits else "no" for ledger in ledgers)],
        ["KV tokens, at most", *(f"{ledger.max_kv_tokens:,}" for ledger in ledgers)],
        ["provenance", *(ledger.total.provenance.value for ledger in ledgers)],
    ]
    body = table(["GiB on one GPU", *(ledger.precision for ledger in ledgers)], rows)
    return "\n\n".join([wrapped(_title(ledgers[0], several=True)), body])


def _title(ledger: MemoryLedger, *, several: bool = False) -> str:
    split = ledger.parallelism
    precision = "" if several else f" in {ledger.precision}"
    return (
        f"{ledger.model}{precision} on {ledger.hardware}, TP {split.tp}, EP {split.ep}, "
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
