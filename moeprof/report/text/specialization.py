"""Whether domains use different experts, the answer first."""

from __future__ import annotations

from moeprof.analysis.specialization import Specialist, SpecializationResult
from moeprof.report.text.layout import shortened, table, wrapped
from moeprof.report.text.routing_factors import factors_text, prefix_words
from moeprof.report.wording import bits, command, counted, listed, percent, times

LAYERS, SPECIALISTS, DOMAINS = 8, 8, 8  # rows that are shown
_SIGNIFICANT = 0.05
_OFTEN = {"once": "once", "all": "every time"}
_FEW = 5  # requests of a domain, below which their spread is not known


def specialization_text(result: SpecializationResult, path: str) -> str:
    """The answer, the layers and specialists that carry it, distances, and what to try next."""
    parts = [wrapped(_answer(result))]
    if result.smallest_p <= _SIGNIFICANT:
        parts.append(_layer_table(result))
    if result.specialists:
        parts += [wrapped(_specialist_words(result)), _specialist_table(result)]
    if 2 < len(result.domains) <= DOMAINS and result.smallest_p <= _SIGNIFICANT:
        parts.append("Bits apart beyond chance, mean over layers:\n" + _distances(result))
    parts += [factors_text(result.factors), wrapped(_prefix_words(result)), wrapped(_note(result))]
    parts.append(f"Next: {_next(result, path)}")
    return "\n\n".join(parts)


def _answer(result: SpecializationResult) -> str:
    if result.smallest_p > _SIGNIFICANT:
        return _untold(result)
    differ = result.p_value <= _SIGNIFICANT
    verb = "do use different experts" if differ else "show no difference beyond chance"
    strongest = sorted(result.layers, key=lambda layer: -layer.excess)[:3]
    passed = sum(layer.q_value <= _SIGNIFICANT for layer in result.layers)
    where = listed([str(layer.layer) for layer in strongest])
    last = (
        f" {passed} of {counted(len(result.layers), 'layer')} differ (q ≤ {_SIGNIFICANT}), "
        f"strongest: {where}."
        if differ
        else " Either they share their experts, or too few requests were recorded to tell."
    )
    return (
        f"{counted(len(result.domains), 'domain')} {verb}: {bits(result.specialization)} apart "
        f"where chance gives {result.null:.3f} (p = {result.p_value:.3f}), {result.excess:.3f} "
        f"beyond it (95 % {_bits(result.interval.low)} to {_bits(result.interval.high)}). "
        f"{counted(result.requests, 'request')}.{last}"
    )


def _untold(result: SpecializationResult) -> str:
    """Why no divergence, however large, would be evidence with these requests."""
    most, domains = max(result.requests_by_domain.values()), counted(len(result.domains), "domain")
    why = (
        "has one request, so shuffling labels over requests changes nothing, and what "
        "domains do cannot be told from what single requests do"
        if most == 1
        else f"has so few requests ({counted(result.requests, 'request')} in all) that shuffled "
        f"labels often group them as they are: no p below {result.smallest_p:.2f} is possible"
    )
    return (
        f"Whether {domains} use different experts cannot be told: each {why}. They are "
        f"{bits(result.specialization)} apart, chance gives {result.null:.3f}. Record more "
        f"requests of each{' or group labels with --label-parts' if _groups(result) else ''}."
    )


def _groups(result: SpecializationResult) -> bool:
    """True where the first parts of labels make fewer, and at least two."""
    return 1 < len({name.split("/")[0] for name in result.domains}) < len(result.domains)


def _next(result: SpecializationResult, path: str) -> str:
    if result.smallest_p > _SIGNIFICANT and _groups(result):
        return command("analyze", "specialization", path, "--label-parts", 1)
    return command("place", "mix", path)


def _bits(value: float, digits: int = 3) -> str:
    """A divergence, which is never below 0: a negative end of an interval says 0."""
    return f"{max(value, 0):.{digits}f}"


def _layer_table(result: SpecializationResult) -> str:
    strongest = sorted(result.layers, key=lambda layer: -layer.excess)[:LAYERS]
    rows = [
        [
            layer.layer,
            f"{layer.specialization:.4f}",
            f"{layer.null:.4f}",
            f"{layer.excess:.4f}",
            f"{_bits(layer.interval.low, 4)} to {_bits(layer.interval.high, 4)}",
            f"{layer.q_value:.3f}",
        ]
        for layer in strongest
    ]
    return table(["layer", "bits apart", "by chance", "beyond", "95 %", "q"], rows, left=0)


def _specialist_words(result: SpecializationResult) -> str:
    first = result.specialists[0]
    return (
        f"Specialists: {result.specialists_found:,} of {result.tests:,} tested places (expert x "
        f"domain x layer) are used more in a domain than elsewhere, at most 1 in 20 of them by "
        f"chance. First: layer {first.layer} expert {first.expert}, {_lift(first)} in "
        f"{first.domain}."
    )


def _lift(one: Specialist) -> str:
    return f"{times(one.lift)} as often" if one.lift is not None else "only"


def _specialist_table(result: SpecializationResult) -> str:
    rows = [
        [
            shortened(one.domain, 32),
            one.layer,
            one.expert,
            percent(one.share),
            percent(one.share_elsewhere),
            "-" if one.lift is None else times(one.lift),
            f"{one.bits:.4f}",
            f"{one.q_value:.1g}",
        ]
        for one in result.specialists[:SPECIALISTS]
    ]
    columns = ["domain", "layer", "expert", "its tokens", "elsewhere", "lift", "bits", "q"]
    return table(columns, rows)


def _distances(result: SpecializationResult) -> str:
    names = [shortened(name, 10) for name in result.domains]
    rows = [
        [name, *(f"{value:.4f}" if place != row else "-" for place, value in enumerate(values))]
        for row, (name, values) in enumerate(zip(names, result.distances, strict=True))
    ]
    return table(["", *names], rows)


def _prefix_words(result: SpecializationResult) -> str:
    words = prefix_words(result.factors.shared_prefixes)
    if not result.factors.shared_prefixes.requests:
        return words
    once, every = result.by_prefixes["once"], result.by_prefixes["all"]
    return (
        f"{words} Counted once for each domain, the domains are {bits(once.specialization)} "
        f"apart (chance {once.null:.3f}); every time, {every.specialization:.3f} (chance "
        f"{every.null:.3f}). Everything above counts them {_OFTEN[result.factors.prefixes]}."
    )


def _note(result: SpecializationResult) -> str:
    few = [f"{name} ({n})" for name, n in result.requests_by_domain.items() if n < _FEW]
    warning = (
        f" Intervals are too narrow with so few requests: {_some(few)}."
        if few and result.smallest_p <= _SIGNIFICANT
        else ""
    )
    return (
        f"bits apart: Jensen-Shannon divergence, 0 to {_most(len(result.domains))}. by chance: "
        f"labels shuffled over requests, {result.shuffles} times. Intervals draw requests anew."
        f"{warning}"
    )


def _some(names: list[str]) -> str:
    more = [f"{len(names) - DOMAINS} more"] if len(names) > DOMAINS else []
    return listed([*names[:DOMAINS], *more])


def _most(domains: int) -> str:
    from math import log2

    return f"{log2(domains):.3g} for {counted(domains, 'domain')}"
