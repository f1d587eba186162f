"""How much an expert cache would hit. A hit ratio never stands without its bytes."""

from __future__ import annotations

from collections.abc import Iterator

from moeprof.cache import LruCurve
from moeprof.quantity import Provenance
from moeprof.report.contents import ReportContents
from moeprof.report.curves import HIT_TARGETS, slots_for
from moeprof.report.findings.finding import Finding
from moeprof.report.wording import (
    counted,
    listed,
    percent,
    read_bytes,
)


def cache(contents: ReportContents) -> Iterator[Finding]:
    """Slots an LRU cache needs in every layer."""
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
        f" {listed(never)} cannot be reached: {percent(1 - best)} of the reads are an "
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
        f"Computed from measured routing under contract {curve.contract}, not observed: a replay "
        f"of {_phase_tokens(curve)} in the recorded batches, with {len(curve.slots)} experts a "
        f"layer and every miss reading one of them.{limit}",
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


def cliff(contents: ReportContents) -> Iterator[Finding]:
    """Where a cache for all layers begins to hit at all."""
    curve = contents.global_curve
    if curve is None or not curve.hitless_slots or curve.token_cycle >= len(curve.slots):
        return
    cycle, hitless, experts = curve.token_cycle, curve.hitless_slots, len(curve.slots)
    never = (
        f"With up to {hitless} slots nothing would ever be hit, but some tokens lack some layers "
        "in this recording, and the curve shows hits that a full one would not."
        if curve.at(hitless) > 0
        else f"With up to {hitless} slots nothing is ever hit, since a token passes through all "
        "other layers before it comes back to the first. Stay well above the token cycle, or give "
        "every layer slots of its own."
    )
    yield Finding(
        f"One cache shared by all layers has a cliff at {cycle} slots, the token cycle.",
        f"That is {percent(cycle / experts)} of the {experts:,} experts. {never}",
        Provenance.SPECIFIED,
    )


def repeat(contents: ReportContents) -> Iterator[Finding]:
    """What a token shares with the one before, and what a step then needs."""
    locality = contents.locality
    if locality is None or locality.next_token_repeat is None:
        return
    size = max(step for step in locality.distinct_by_batch if step <= 64)
    needed, even = locality.distinct_by_batch[size], locality.distinct_uniform[size]
    yield Finding(
        f"A decode token uses {percent(locality.next_token_repeat)} of the experts of the token "
        f"before it, where popularity alone would repeat {percent(locality.repeat_null)}.",
        f"What repeats need not be read again. A step of {counted(size, 'token')}, each of another "
        f"request, needs {needed:.1f} of {locality.experts} experts in a layer; an even router "
        f"would need {even:.1f}.",
        Provenance.MEASURED,
    )
