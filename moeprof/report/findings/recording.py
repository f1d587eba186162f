"""What the recording holds, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator

from moeprof.model import MoEModel
from moeprof.quantity import Provenance
from moeprof.report.contents import ReportContents
from moeprof.report.findings.finding import Finding
from moeprof.report.sampled import error_words, sampled_words
from moeprof.report.wording import (
    count,
    counted,
    listed,
    percent,
)


def problems(contents: ReportContents) -> Iterator[Finding]:
    """What is missing or damaged, which stands before all else."""
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
        reasons = listed([f"{n:,} for '{reason}'" for reason, n in sorted(info.dropped.items())])
        yield Finding(
            f"{counted(dropped, 'token')} of {seen:,} seen ({percent(dropped / seen)}) "
            f"were dropped and not recorded: {reasons}.",
            "What follows a gap counts as its neighbour: reuse may read lower than it was.",
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


def transfer(contents: ReportContents) -> Iterator[Finding]:
    """That the routing is of one model and the projection of another, said plainly."""
    if not contents.transfer:
        return
    recorded, target = contents.recorded, contents.target
    yield Finding(
        f"The routing on this page is that of {recorded.name} ({_shape(recorded)}), "
        f"not of {target.name} ({_shape(target)}).",
        f"Load, reuse and domains say nothing about {target.name} until it is recorded itself. Its "
        "memory and its decode bound at batch 1 do not depend on routing, and hold."
        f"{_speed(contents)}",
        Provenance.SPECIFIED,
        "notice",
    )


def _speed(contents: ReportContents) -> str:
    """What the projected speed makes of the recording."""
    study = contents.projection
    if study is None or not contents.target.moe_layers:
        return ""
    if study.routing == "even":
        return " Its speed is projected with even routing."
    return f" Its speed is projected with this routing carried over by {study.routing}: assumed."


def _shape(model: MoEModel) -> str:
    if not model.moe_layers:
        return "dense, without experts"
    layers = counted(len(model.moe_layers), "MoE layer")
    return f"{layers}, top-{model.top_k} of {model.experts} experts"


def partial(contents: ReportContents) -> Iterator[Finding]:
    """That some requests, or older tokens, were left out on purpose."""
    info = contents.info
    if info.sampling:
        yield Finding(
            f"Requests were sampled: {sampled_words(info)}, {info.tokens_sampled_out:,} tokens "
            "left out.",
            "Loads, shares and imbalance below are estimates for all requests. "
            f"{error_words(contents.sampling)} Reuse and caches are those of the kept requests "
            "alone, in thinner batches than the engine ran.",
            Provenance.MEASURED,
            "notice",
        )
    if info.rotated_tokens:
        seen = info.tokens + info.rotated_tokens
        yield Finding(
            f"Only the newest {counted(info.tokens, 'token')} of {seen:,} recorded are here: the "
            f"older {info.rotated_tokens:,} were let go to keep the recording within its size.",
            "Everything below is of those newest tokens, and the first requests may lack their "
            "beginning.",
            Provenance.MEASURED,
            "notice",
        )


def extent(contents: ReportContents) -> Iterator[Finding]:
    """How much was recorded."""
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
