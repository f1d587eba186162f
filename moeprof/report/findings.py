"""What it all means, in sentences: the top of the page, the end of a command.

Every finding is a pure function of the contents, one entry in FINDINGS. A headline states one
number with its unit; the meaning says what follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from moeprof.cache import LruCurve
from moeprof.quantity import Provenance
from moeprof.report.contents import ReportContents
from moeprof.report.curves import HIT_TARGETS, slots_for
from moeprof.report.wording import (
    count,
    counted,
    held_bytes,
    listed,
    percent,
    read_bytes,
    short_count,
    times,
)
from moeprof.result import Result

Tone = Literal["problem", "notice", "fact"]


@dataclass(frozen=True)
class Finding(Result):
    """One sentence that states, one that says what it means, and where the number comes from."""

    headline: str
    meaning: str
    provenance: Provenance
    tone: Tone = "fact"


def find_all(contents: ReportContents) -> list[Finding]:
    """All findings of `contents`, problems first."""
    return [finding for find in FINDINGS for finding in find(contents)]


def _problems(contents: ReportContents) -> Iterator[Finding]:
    info = contents.info
    for problem in info.problems:
        yield Finding(
            f"The recording is damaged or incomplete: {problem}.",
            "What is whole was read; numbers below leave out the rest.",
            Provenance.MEASURED,
            "problem",
        )
    dropped = sum(info.dropped.values())
    if dropped:
        seen = info.tokens + dropped
        reasons = listed([f"{n:,} by '{reason}'" for reason, n in sorted(info.dropped.items())])
        yield Finding(
            f"{counted(dropped, 'token')} of {seen:,} seen ({percent(dropped / seen)}) "
            f"were dropped and not recorded: {reasons}.",
            "Whole steps are missing, so reuse between neighbouring tokens reads lower than it "
            "was.",
            Provenance.MEASURED,
            "problem",
        )
    if not info.complete and not info.problems:
        yield Finding(
            "The recording was cut off before its writer closed it.",
            "Everything up to the cut is shown.",
            Provenance.MEASURED,
            "problem",
        )


def _transfer(contents: ReportContents) -> Iterator[Finding]:
    if not contents.transfer:
        return
    recorded, target = contents.recorded, contents.target
    yield Finding(
        f"The routing on this page is that of {recorded.name} ({_shape(contents, recorded=True)}), "
        f"not of {target.name} ({_shape(contents, recorded=False)}).",
        f"Load, reuse and domains say nothing about {target.name} until it is recorded itself. Its "
        "memory and its decode bound at batch 1 do not depend on routing, and hold.",
        Provenance.SPECIFIED,
        "notice",
    )


def _shape(contents: ReportContents, *, recorded: bool) -> str:
    model = contents.recorded if recorded else contents.target
    layers = counted(len(model.moe_layers), "MoE layer")
    return f"{layers}, top-{model.top_k} of {model.experts} experts"


def _extent(contents: ReportContents) -> Iterator[Finding]:
    info, load = contents.info, contents.load
    if info.counts_only:
        assignments = int(load.load.sum()) if load else 0
        yield Finding(
            f"{count(assignments)} assignments were counted in {info.layers} MoE layers.",
            "The recording holds counts and no order of tokens: load is shown, reuse cannot be.",
            Provenance.MEASURED,
        )
        return
    labels = f" under {counted(len(info.labels), 'label')}" if info.labels else ""
    phases = f"{info.prefill_tokens:,} in prefill and {info.decode_tokens:,} in decode"
    yield Finding(
        f"{counted(info.tokens, 'token')} of {counted(info.requests, 'request')}{labels} were "
        f"recorded in {counted(info.layers, 'MoE layer')}.",
        f"{phases[0].upper()}{phases[1:]}, over {counted(info.steps, 'engine step')}; every token "
        f"makes {info.layers * info.top_k} assignments, top-{info.top_k} of {info.experts} experts "
        "in each layer.",
        Provenance.MEASURED,
    )


def _imbalance(contents: ReportContents) -> Iterator[Finding]:
    load = contents.load
    if load is None:
        return
    worst = max(load.per_layer, key=lambda layer: layer.imbalance)
    unused = sum(layer.unused_experts for layer in load.per_layer)
    even = contents.even_imbalance
    chance = (
        f" An even router would show {times(even)} at this length by chance alone." if even else ""
    )
    idle = f" {counted(unused, 'expert')} of {load.load.size:,} got no token." if unused else ""
    yield Finding(
        f"The busiest expert of a layer gets {times(load.mean_imbalance)} the layer's mean load, "
        f"averaged over layers; layer {worst.layer} is the most uneven at "
        f"{times(worst.imbalance)}.",
        f"This is imbalance, max over mean, and 1 is even.{chance}{idle}",
        Provenance.MEASURED,
    )


def _gpus(contents: ReportContents) -> Iterator[Finding]:
    load = contents.gpu_load
    if load is None or load.gpus is None or load.gpus == 1:
        return
    ratio = load.mean_imbalance
    yield Finding(
        f"With experts in order of id on {load.gpus} GPUs, the busiest GPU carries {times(ratio)} "
        "the mean of its layer.",
        "In large batches under expert parallelism every layer waits for that GPU, which has "
        f"{percent(ratio - 1)} more to do than its even share. This is summed over the recording: "
        "single steps are more uneven, and in small decode batches skew means fewer experts to "
        "read.",
        Provenance.MEASURED,
    )


def _domains(contents: ReportContents) -> Iterator[Finding]:
    result = contents.specialization
    if result is None:
        return
    beyond = result.specialization > result.null_p95
    headline = (
        f"The {len(result.domains)} labels use different experts: they diverge by "
        if beyond
        else f"No difference between the {len(result.domains)} labels beyond chance: they diverge by "
    )
    meaning = (
        "Placements and caches fitted on one of them will do worse on another, so record the mix "
        "that is to be served."
        if beyond
        else "Either they share their experts, or too few requests were recorded to tell."
    )
    yield Finding(
        f"{headline}{result.specialization:.3f} bit, and shuffled labels by {result.null:.3f} bit "
        f"(95 % below {result.null_p95:.3f}; p = {result.p_value:.3f}).",
        meaning,
        Provenance.MEASURED,
    )


def _cache(contents: ReportContents) -> Iterator[Finding]:
    curve = contents.layer_curve
    if curve is None:
        return
    reached = [(target, slots_for(curve, target)) for target in HIT_TARGETS]
    sizes = [
        _size(contents, curve, target, slots) for target, slots in reached if slots is not None
    ]
    never = [percent(target) for target, slots in reached if slots is None]
    best = curve.hit_ratio[-1]
    limit = (
        f" {listed(never)} of hits cannot be reached: {percent(1 - best)} of the reads are an "
        "expert's first, which no cache has."
        if never
        else ""
    )
    headline = (
        f"An LRU cache in every layer needs {listed(sizes)}."
        if sizes
        else f"No LRU cache, however large, hits {percent(HIT_TARGETS[0])} of the expert reads."
    )
    yield Finding(
        headline,
        f"Replayed over {_phase_tokens(curve)} as recorded, {counted(len(curve.slots), 'expert')} a "
        f"layer, every miss reading one expert.{limit}",
        Provenance.MEASURED,
    )


def _size(contents: ReportContents, curve: LruCurve, target: float, slots: int) -> str:
    misses = curve.misses_per_token[slots - 1]
    size = contents.expert_bytes.get("bf16")
    cost = (
        f"{read_bytes(misses * size)} a token in BF16" if size else f"{misses:.3g} misses a token"
    )
    return f"{counted(slots, 'slot')} for {percent(target)} hits ({cost})"


def _phase_tokens(curve: LruCurve) -> str:
    kind = "token" if curve.phase == "all" else f"{curve.phase} token"
    return f"{counted(curve.tokens, kind)}"


def _cliff(contents: ReportContents) -> Iterator[Finding]:
    curve = contents.global_curve
    if curve is None or curve.token_cycle >= len(curve.slots):
        return
    yield Finding(
        f"One cache shared by all layers has a cliff at {curve.token_cycle} slots, the token cycle.",
        f"That is {percent(curve.token_cycle / len(curve.slots))} of the {len(curve.slots):,} experts: "
        "with fewer slots nothing is ever hit, since a token passes through all layers before it "
        "comes back to the first. Stay well above it, or give every layer slots of its own.",
        Provenance.SPECIFIED,
    )


def _memory(contents: ReportContents) -> Iterator[Finding]:
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
            f"{smallest.precision.upper()} is short of {held_bytes(short)} on every GPU: more GPUs, "
            "larger ones, or experts kept in host memory.",
            smallest.total.provenance,
        )
        return
    room = [
        f"{ledger.precision.upper()} leaves room for {short_count(ledger.max_kv_tokens)} tokens of KV"
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


def _bound(contents: ReportContents) -> Iterator[Finding]:
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


FINDINGS: tuple[Callable[[ReportContents], Iterator[Finding]], ...] = (
    _problems,
    _transfer,
    _extent,
    _imbalance,
    _gpus,
    _domains,
    _cache,
    _cliff,
    _memory,
    _bound,
)
