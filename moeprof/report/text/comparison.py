"""Two recordings or results side by side, in words: what differs first, then the figures."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis.comparison import (
    Agreement,
    Alignment,
    Difference,
    DocumentComparison,
    SaturationResult,
    TraceComparison,
)
from moeprof.report.text.layout import shortened, table, wrapped
from moeprof.report.wording import command, counted, listed, percent

LAYERS = 8  # that are shown: those that differ most
NUMBERS = 30  # of a result that are shown
# metric: what is said where it is larger in B, and where it is smaller
WORDS = {
    "mean_imbalance": ("routes more unevenly", "routes more evenly"),
    "next_token_repeat": ("repeats experts more", "repeats experts less"),
    "specialization": ("tells its labels apart more", "tells its labels apart less"),
    "distinct_experts.8": ("needs more distinct experts", "needs fewer distinct experts"),
}


def comparison_text(comparison: TraceComparison) -> str:
    """What B does otherwise than A, the figures, the layers that differ most."""
    overall = [found for found in comparison.differences if found.layer is None]
    parts = [wrapped(_verdict(comparison, overall)), _sides(comparison), _figures(overall)]
    parts += [wrapped(_agreed(comparison.agreement))] if comparison.agreement else []
    parts += [wrapped(_aligned(comparison.alignment))] if comparison.alignment else []
    parts += [_layers(comparison)] if comparison.divergence else []
    parts += [wrapped(words) for words in comparison.not_compared]
    parts += [_failed(comparison.failed)] if comparison.failed else []
    return "\n\n".join([*parts, _next(comparison)])


def _sides(comparison: TraceComparison) -> str:
    rows = [
        [
            name,
            shortened(side.name, 34),
            shortened(side.model, 18),
            f"{side.tokens:,}",
            f"{side.requests:,}",
        ]
        for name, side in (("A", comparison.a), ("B", comparison.b))
    ]
    return table(["", "recording", "model", "tokens", "requests"], rows, left=3)


def _verdict(comparison: TraceComparison, overall: Sequence[Difference]) -> str:
    """The answer: what is significant, in words with the numbers that carry it."""
    sure = [found for found in overall if found.significant]
    said = [_said(found) for found in sure if found.metric in WORDS]
    if said:
        head = f"B {listed(said)}."
    elif sure:
        head = f"B differs from A in {listed([found.metric for found in sure])}."
    elif any(found.p is None for found in overall):
        head = "Of so few requests it cannot be said whether A and B differ."
    else:
        pairs = "the same requests" if comparison.paired else "requests of one kind"
        head = (
            "A and B are the same in every figure."
            if all(found.p == 1 and not found.effect for found in overall)
            else f"No figure differs by more than two recordings of {pairs} do by chance."
        )
    apart = comparison.divergence
    if apart is None or apart.p is None:
        return head
    layers = sum(layer.significant for layer in apart.per_layer)
    verdict = (
        "use other experts" if apart.significant else "use the same experts, as far as this tells"
    )
    return (
        f"{head} They {verdict}: distributions are {apart.value:.4f} bits apart, {apart.null:.4f} "
        f"by chance (p {_p(apart.p)}), beyond chance in {layers} of "
        f"{counted(len(apart.per_layer), 'layer')}."
    )


def _said(found: Difference) -> str:
    more, less = WORDS[found.metric]
    return (
        f"{more if found.effect > 0 else less}: {found.metric} {_number(found.b)} against "
        f"{_number(found.a)} ({_effect(found)})"
    )


def _effect(found: Difference) -> str:
    if found.low is None or found.high is None:
        return _signed(found.effect)
    return f"{_signed(found.effect)}, 95 % {_signed(found.low)} to {_signed(found.high)}"


def _figures(overall: Sequence[Difference]) -> str:
    rows = [
        [
            shortened(found.metric, 24),
            _number(found.a),
            _number(found.b),
            _signed(found.effect),
            "-" if found.low is None else f"{_signed(found.low)} to {_signed(found.high or 0)}",
            "-" if found.q is None else _p(found.q),
            "*" if found.significant else "",
        ]
        for found in overall
    ]
    return table(["figure", "A", "B", "B - A", "95 % interval", "q", ""], rows)


def _agreed(agreement: Agreement) -> str:
    band = agreement.interval
    spread = f" (95 % {percent(band.low)} to {percent(band.high)})" if band else ""
    first = "" if agreement.first is None else f", the first choice for {percent(agreement.first)}"
    return (
        f"On {counted(agreement.tokens, 'token')} that both recorded ({agreement.known_by}) "
        f"{percent(agreement.agreement)} of a token's experts are the same{spread}, "
        f"{percent(agreement.chance['agreement'])} by chance; all of them for "
        f"{percent(agreement.exact)} of tokens{first}."
    )


def _aligned(alignment: Alignment) -> str:
    return (
        f"Experts matched by {alignment.by}: on requests that the matching was not fitted to "
        f"{percent(alignment.matched)} agree, {percent(alignment.as_they_are)} with ids as they "
        f"stand and {percent(alignment.null)} by a matching of shuffled data "
        f"({percent(alignment.fitted)} where it was fitted). {percent(alignment.moved)} of experts "
        "have another id in B; --json has them."
    )


def _layers(comparison: TraceComparison) -> str:
    """The layers whose experts are furthest apart, in order of layer."""
    assert comparison.divergence is not None
    layers = comparison.divergence.per_layer
    uneven = {found.layer: found for found in comparison.differences if found.layer is not None}
    agreed = {}
    if comparison.agreement:
        agreed = {layer.layer: layer.agreement for layer in comparison.agreement.per_layer}
    furthest = sorted(layers, key=lambda layer: layer.null - layer.value)[:LAYERS]
    rows = [
        [
            layer.layer,
            f"{layer.value:.4f}",
            f"{layer.null:.4f}",
            "*" if layer.significant else "",
            f"{uneven[layer.layer].a:.2f}" if layer.layer in uneven else "-",
            f"{uneven[layer.layer].b:.2f}" if layer.layer in uneven else "-",
            percent(agreed[layer.layer]) if layer.layer in agreed else "-",
        ]
        for layer in sorted(furthest, key=lambda layer: layer.layer)
    ]
    columns = ["layer", "bits apart", "by chance", "", "imbalance A", "B", "same experts"]
    shown = "" if len(layers) <= LAYERS else f"\n{LAYERS} of {len(layers)} layers, furthest apart."
    return table(columns, rows, left=0) + shown + "\n* q at most 0.05, false discovery rate."


def documents_text(comparison: DocumentComparison) -> str:
    """The numbers that differ between two results, the largest relative difference first."""
    differ = [found for found in comparison.differences if found.effect]
    bands = [found for found in differ if found.low is not None]
    head = (
        f"{comparison.schema}: {len(differ):,} of {len(comparison.differences):,} numbers differ"
        f"{f', {sum(f.significant for f in bands)} beyond their bands' if bands else ''}."
    )
    largest = sorted(differ, key=_weight)[:NUMBERS]
    rows = [
        [
            shortened(found.metric, 40),
            _number(found.a),
            _number(found.b),
            "-" if found.relative is None else f"{100 * found.relative:+.3g} %",
            "*" if found.significant else "",
        ]
        for found in largest
    ]
    parts = [wrapped(head)]
    parts += [table(["number", "A", "B", "relative", ""], rows)] if rows else []
    if len(differ) > NUMBERS:
        parts.append(f"{NUMBERS} of {len(differ)}; --json has all.")
    if comparison.changed:
        names = [f"{found.metric}: {found.a} -> {found.b}" for found in comparison.changed[:8]]
        parts.append(wrapped(f"Otherwise: {'; '.join(names)}."))
    for side, only in (("A", comparison.only_a), ("B", comparison.only_b)):
        if only:
            parts.append(wrapped(f"Only in {side}: {len(only):,}, such as {', '.join(only[:4])}."))
    parts += [_failed(comparison.failed)] if comparison.failed else []
    metric = largest[0].metric if largest else "METRIC"
    check = command("compare", comparison.a, comparison.b, "--fail-on", f"{metric} > 5%")
    return "\n\n".join([*parts, f"Next: {check}"])


def _weight(found: Difference) -> tuple[bool, bool, float]:
    """Those beyond their bands first, entries of arrays last, else by relative difference."""
    return not found.significant, found.metric.endswith("]"), -abs(found.relative or 0)


def saturation_text(result: SaturationResult) -> str:
    """Saturation by checkpoint, and the layers that come last."""
    first = result.checkpoints[0]
    head = (
        f"{percent(first.saturation)} of the experts that the last checkpoint chooses for a token "
        f"were chosen by the first already, {percent(result.chance)} by chance."
    )
    rows = []
    for checkpoint in result.checkpoints:
        by_layer = sorted((x.agreement, x.layer) for x in checkpoint.agreement.per_layer)
        band = checkpoint.agreement.interval
        rows.append(
            [
                shortened(checkpoint.name, 34),
                percent(checkpoint.saturation),
                f"{percent(band.low)} to {percent(band.high)}" if band else "-",
                f"{by_layer[0][1]} ({percent(by_layer[0][0])})",
                f"{by_layer[-1][1]} ({percent(by_layer[-1][0])})",
            ]
        )
    columns = ["checkpoint", "saturation", "95 %", "least in layer", "most in layer"]
    parts = [wrapped(head), table(columns, rows)]
    parts.append(f"Last checkpoint: {shortened(result.last, 60)}.")
    parts += [_failed(result.failed)] if result.failed else []
    return "\n\n".join(
        [*parts, f"Next: {command('compare', result.checkpoints[-1].name, result.last)}"]
    )


def _failed(failed: Sequence[str]) -> str:
    return wrapped(f"FAILED: {'; '.join(failed)}.")


def _next(comparison: TraceComparison) -> str:
    both = ("compare", comparison.a.name, comparison.b.name)
    agreement = comparison.agreement
    strange = agreement is not None and agreement.agreement < 2 * agreement.chance["agreement"]
    if strange and comparison.alignment is None:
        return f"Next, if ids are of two trainings: {command(*both, '--align')}"
    if comparison.agreement is None and comparison.paired and comparison.divergence:
        return f"Next, if the tokens are the same: {command(*both, '--same-tokens')}"
    return f"Next: {command(*both, '--fail-on', 'significant')}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _signed(value: float) -> str:
    return f"{value:+.3g}" if value else "0"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0005 else "<0.001"
