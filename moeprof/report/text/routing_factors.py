"""What routing depends on beside the domain, a paragraph each."""

from __future__ import annotations

from collections.abc import Callable

from moeprof.analysis.specialization import (
    ConfidenceResult,
    PartsEffect,
    RoutingFactors,
    SharedPrefixes,
    VocabularyResult,
)
from moeprof.analysis.uncertainty import Interval
from moeprof.report.text.layout import shortened, table, wrapped
from moeprof.report.wording import bits, command, counted, percent

SHOWN = 5


def unlabelled_text(factors: RoutingFactors, path: str) -> str:
    """All of it, with no domains to compare."""
    prefixes = wrapped(prefix_words(factors.shared_prefixes))
    return "\n\n".join(
        [factors_text(factors), prefixes, f"Next: {command('analyze', 'locality', path)}"]
    )


def factors_text(factors: RoutingFactors) -> str:
    """Position, phase, token ids and confidence; then what could not be told, and why."""
    parts: list[str] = []
    if factors.position:
        parts.append(wrapped(_parts_words("Position", "quarters of a request", factors.position)))
    if factors.phase:
        parts.append(wrapped(_parts_words("Phase", "a prompt and its answer", factors.phase)))
    if factors.vocabulary:
        parts += [wrapped(_vocabulary_words(factors.vocabulary)), _ids(factors.vocabulary)]
    if factors.confidence:
        parts.append(wrapped(_confidence_words(factors.confidence)))
    for name, reason in factors.missing.items():
        parts.append(wrapped(f"{name.capitalize()}: not told, {reason}."))
    return "\n\n".join(parts)


def _parts_words(name: str, what: str, effect: PartsEffect) -> str:
    differ = effect.p_value <= 0.05
    verdict = "matters" if differ else "makes no difference beyond chance"
    strongest = max(effect.layers, key=lambda layer: layer.divergence - layer.null)
    where = f" Most in layer {strongest.layer}." if differ else ""
    return (
        f"{name} {verdict}: {what} are {bits(effect.divergence, 4)} apart where chance gives "
        f"{effect.null:.4f} (p = {effect.p_value:.3f}), {effect.excess:.4f} beyond it "
        f"({_range(effect.interval, 4)}). Parts are shuffled within each of "
        f"{counted(effect.requests, 'request')}.{where}"
    )


def _vocabulary_words(vocabulary: VocabularyResult) -> str:
    return (
        f"Token ids explain {percent(max(vocabulary.explained, 0))} of routing beyond chance "
        f"(95 % {percent(max(vocabulary.interval.low, 0))} to "
        f"{percent(max(vocabulary.interval.high, 0))}, p = {vocabulary.p_value:.2f}); the rest is "
        f"context. An id's strongest expert takes {percent(vocabulary.specialization)} of its "
        f"occurrences, {percent(vocabulary.specialization_null)} by chance. Of "
        f"{counted(vocabulary.ids, 'id')} that come 10 times or more, "
        f"{percent(vocabulary.token_share)} of the tokens looked at."
    )


def _ids(vocabulary: VocabularyResult) -> str:
    rows = [
        [
            one.token_id,
            one.layer,
            one.expert,
            percent(one.share),
            percent(one.share_of_all),
            one.occurrences,
        ]
        for one in vocabulary.experts[:SHOWN]
    ]
    columns = ["token id", "layer", "expert", "of its uses", "of all tokens", "uses"]
    return table(columns, rows, left=0)


def _confidence_words(confidence: ConfidenceResult) -> str:
    words = f"Confidence, {counted(confidence.tokens, 'token')}:"
    if confidence.near_ties is not None and confidence.near_ties_interval:
        words += (
            f" {percent(confidence.near_ties)} of choices are near ties, decided by less than "
            f"{confidence.near_tie:g} ({_percents(confidence.near_ties_interval)})"
            f"{_extremes(confidence.near_ties_by_domain, percent)}."
        )
    if confidence.gate_entropy is not None and confidence.gate_entropy_interval:
        words += (
            f" Gate weights have {confidence.gate_entropy:.2f} of "
            f"{bits(confidence.most_entropy, 2)} of entropy "
            f"({_range(confidence.gate_entropy_interval, 2)})"
            f"{_extremes(confidence.gate_entropy_by_domain, lambda bits: f'{bits:.2f}')}."
        )
    return words


def _extremes(by_domain: dict[str, float], write: Callable[[float], str]) -> str:
    """': from 1.2 in code to 1.6 in math'; nothing for one domain."""
    if len(by_domain) < 2:
        return ""
    low, high = min(by_domain, key=by_domain.__getitem__), max(by_domain, key=by_domain.__getitem__)
    return (
        f": {write(by_domain[low])} in {shortened(low, 60)} to {write(by_domain[high])} in "
        f"{shortened(high, 60)}"
    )


def _range(interval: Interval, digits: int) -> str:
    return f"95 % {max(interval.low, 0):.{digits}f} to {max(interval.high, 0):.{digits}f}"


def _percents(interval: Interval) -> str:
    return f"95 % {percent(interval.low)} to {percent(interval.high)}"


def prefix_words(shared: SharedPrefixes) -> str:
    """How much of the recording is the same beginning again."""
    if not shared.requests:
        return f"No requests share a beginning of 8 tokens or more, told by {shared.seen_by}."
    return (
        f"Shared beginnings, as templates: {counted(shared.requests, 'request')} "
        f"({percent(shared.request_share)}) begin as another does, with "
        f"{percent(shared.token_share)} of all tokens, told by {shared.seen_by}."
    )
