"""Where tokens went: balance of experts and GPUs, and differences between labels."""

from __future__ import annotations

from collections.abc import Iterator

from moeprof.quantity import Provenance
from moeprof.report.contents import ReportContents
from moeprof.report.findings.finding import Finding
from moeprof.report.wording import (
    bits,
    counted,
    percent,
    times,
)


def imbalance(contents: ReportContents) -> Iterator[Finding]:
    """Uneven load of the experts, beside what chance would give."""
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
        f"{times(worst.imbalance)}{_error(contents, worst.layer)}.",
        f"This is imbalance, max over mean, and 1 is even.{chance}{idle}",
        Provenance.MEASURED,
    )


def _error(contents: ReportContents, layer: int) -> str:
    """' (standard error 0.12)' of a sampled layer's imbalance."""
    if contents.sampling is None:
        return ""
    [found] = [of for of in contents.sampling.per_layer if of.layer == layer]
    return f" (standard error {times(found.imbalance_error)})"


def gpus(contents: ReportContents) -> Iterator[Finding]:
    """What that means for GPUs that hold the experts in order of id."""
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


def domains(contents: ReportContents) -> Iterator[Finding]:
    """Whether labels use different experts, beyond their shuffle null."""
    result = contents.specialization
    if result is None:
        return
    beyond, told = result.p_value <= 0.05, result.smallest_p <= 0.05
    labels = counted(len(result.domains), "label")
    headline = (
        f"The {labels} use different experts: they diverge by "
        if beyond
        else f"No difference between the {labels} beyond chance: they diverge by "
        if told
        else f"Too few requests tell whether the {labels} use different experts: they diverge by "
    )
    meaning = (
        "Placements and caches fitted on one of them will do worse on another, so record the mix "
        "that is to be served."
        if beyond
        else "Either they share their experts, or too few requests were recorded to tell."
    )
    yield Finding(
        f"{headline}{bits(result.specialization)}, and shuffled labels by {bits(result.null)} "
        f"(95 % below {result.null_p95:.3f}; p = {result.p_value:.3f}).",
        meaning,
        Provenance.MEASURED,
    )


def next_layer(contents: ReportContents) -> Iterator[Finding]:
    """What a layer's experts tell about those of the next."""
    affinity = contents.affinity
    if affinity is None:
        return
    top1, popular = affinity.next_layer_top1, affinity.next_layer_top1_popularity
    if top1 is None or popular is None:
        return
    yield Finding(
        f"Of one layer's experts the likeliest successors are used in the next {percent(top1)} of "
        f"the time; the most popular expert is used {percent(popular)}.",
        "Judged on other requests than it was counted on. The difference is what one expert tells "
        "about the next layer; moeprof cache prefetch says what it is worth.",
        Provenance.MEASURED,
    )
