"""What the target model needs on the hardware, and the bound on its speed."""

from __future__ import annotations

from collections.abc import Iterator

from moeprof.projection import FAMILIARITIES
from moeprof.projection.advice.splits import split_name
from moeprof.quantity import Quantity
from moeprof.report.contents import ReportContents
from moeprof.report.findings.finding import Finding
from moeprof.report.projected_words import deployed, digits, load_words
from moeprof.report.wording import (
    count,
    counted,
    held_bytes,
    listed,
    percent,
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


def speed(contents: ReportContents) -> Iterator[Finding]:
    """How fast the target serves under the load of the page, at what cost, and what takes time."""
    study = contents.projection
    if study is None:
        return
    chosen, tpot, rate = study.chosen, study.chosen.tpot_ms, study.chosen.output_tok_s
    if tpot is None or rate is None:
        return
    cost = chosen.cost_per_million_tokens
    price = f", {_banded(cost)} USD a million" if cost else ""
    share = sorted(chosen.share.items(), key=lambda each: -each[1])[:3]
    yield Finding(
        f"{deployed(study)} serves {load_words(study)} at {_banded(tpot)} ms a token and "
        f"{_banded(rate)} tokens/s in all{price}.",
        f"In brackets the 80 % band: {FAMILIARITIES[chosen.familiarity or '']}. Of a token's time "
        f"{listed([f'{percent(part)} goes to {name}' for name, part in share])}.",
        tpot.provenance,
    )


def _banded(each: Quantity) -> str:
    """'22.1 (17 to 31.7)'."""
    if each.low is None or each.high is None:
        return digits(each.value)
    return f"{digits(each.value)} ({digits(each.low)} to {digits(each.high)})"


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


def advised(contents: ReportContents) -> Iterator[Finding]:
    """The cheapest deployment that keeps users waiting no longer than they may."""
    advice = contents.advice
    if advice is None or not advice.found:
        return
    first, targets = advice.options[0], advice.targets
    wanted = (("TPOT", targets.tpot_ms), ("TTFT", targets.ttft_ms))
    within = " and ".join(f"{name} of {digits(ms)} ms" for name, ms in wanted if ms)
    cost = first.cost_per_million_tokens
    price = f", {digits(cost.value)} USD a million output tokens" if cost else ""
    yield Finding(
        f"The cheapest deployment within {within or 'any time'}: {first.precision.upper()} on "
        f"{first.hardware}, {split_name(first.parallelism)}, "
        f"{counted(first.concurrency, 'request')} at a time{price}.",
        f"Of {counted(advice.searched, 'deployment')} of {advice.model} on this hardware. The line "
        f"that starts it with {first.engine} stands under Advice.",
        first.tpot_ms.provenance,
    )
