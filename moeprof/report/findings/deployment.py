"""What the target model needs on the hardware, and the bound on its speed."""

from __future__ import annotations

from collections.abc import Iterator

from moeprof.report.contents import ReportContents
from moeprof.report.findings.finding import Finding
from moeprof.report.wording import (
    count,
    held_bytes,
    listed,
    read_bytes,
    short_count,
)


def memory(contents: ReportContents) -> Iterator[Finding]:
    """Whether the target fits, and the tokens of KV left."""
    ledgers = [deployment.ledger for deployment in contents.deployments]
    if not ledgers:
        return
    first = ledgers[0]
    fitting = [ledger for ledger in ledgers if ledger.fits]
    where = f"{first.model} on {first.hardware} ({_ranks(contents)})"
    if not fitting:
        smallest = min(ledgers, key=lambda ledger: ledger.total.value)
        short = -smallest.free_bytes
        yield Finding(
            f"{where} does not fit in {listed([ledger.precision.upper() for ledger in ledgers])}.",
            f"{smallest.precision.upper()} is {held_bytes(short)} short on every GPU: more GPUs, "
            "larger ones, or experts kept in host memory.",
            smallest.total.provenance,
        )
        return
    room = [
        f"{ledger.precision.upper()} leaves {'at least ' if ledger.sliding_layers else ''}"
        f"{short_count(ledger.max_kv_tokens)} tokens of KV"
        for ledger in fitting
    ]
    unfit = [ledger.precision.upper() for ledger in ledgers if not ledger.fits]
    failing = f" It does not fit in {listed(unfit)}." if unfit else ""
    yield Finding(
        f"{where} fits: {listed(room)}.",
        f"Of all requests of a data-parallel group together, KV in BF16, beside weights of "
        f"{listed([held_bytes(ledger.weights.value) for ledger in fitting])} a GPU.{failing}",
        max((ledger.total.provenance for ledger in fitting), key=lambda p: p.rank),
    )


def _ranks(contents: ReportContents) -> str:
    split = contents.deployments[0].ledger.parallelism
    return f"TP {split.tp}" if split.dp == 1 else f"TP {split.tp} x DP {split.dp}"


def bound(contents: ReportContents) -> Iterator[Finding]:
    """The bound of decode at batch 1."""
    fitting = [deployment for deployment in contents.deployments if deployment.ledger.fits]
    if not fitting:
        return
    bounds = [
        f"{count(deployment.decode_bound.value)} tokens/s in {deployment.ledger.precision.upper()} "
        f"({read_bytes(deployment.decode_read.value)} a step)"
        for deployment in fitting
    ]
    yield Finding(
        f"Decode at batch 1 is bounded by {listed(bounds)}.",
        "An upper bound, not a projection: weight bytes of one step over the peak bandwidth of all "
        "GPUs. Real engines reach a fraction of it.",
        max((d.decode_bound.provenance for d in fitting), key=lambda p: p.rank),
    )
