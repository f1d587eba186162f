"""Experts that go together, in sentences and tables."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis import AffinityResult
from moeprof.analysis.affinity import ExpertPair, LayerAffinity, LayerTransition
from moeprof.report.text.layout import table, wrapped
from moeprof.report.wording import as_next, command, counted, percent, times

_ROWS = 12  # layers shown


def affinity_text(affinity: AffinityResult, path: str = "T") -> str:
    """What goes together, how sure that is and what it is good for; pairs, layers, what next."""
    parts = [
        wrapped(_strongest_words(affinity)),
        wrapped(_pairs_words(affinity)),
        wrapped(_next_words(affinity)),
        _pairs(affinity.strongest),
        _layers(affinity),
        wrapped(_counted_words(affinity)),
        _next_commands(affinity, path),
    ]
    return "\n\n".join(part for part in parts if part)


def _strongest_words(affinity: AffinityResult) -> str:
    if affinity.modularity is None:
        return (
            f"Tokens choose {affinity.top_k} of {affinity.experts} experts: which ones go "
            "together in a layer is not a question."
        )
    if not affinity.strongest:
        return "No two experts are chosen together clearly more often than their loads explain."
    pair = affinity.strongest[0]
    return (
        f"Experts {pair.experts[0]} and {pair.experts[1]} of layer {pair.layer} are chosen "
        f"together {_factor(pair.lift)} times as often as their loads explain "
        f"({pair.together:,} tokens, {_few(pair.expected)} expected)."
    )


def _pairs_words(affinity: AffinityResult) -> str:
    """How many pairs, how lasting, how grouped."""
    if affinity.modularity is None or affinity.significant_pairs is None:
        return ""
    words = [
        f"{percent(affinity.significant_pairs)} of a layer's pairs are together clearly more or "
        "less often than by chance (false discoveries below 5 %)."
    ]
    if affinity.from_requests is not None:
        words.append(
            f"Of the strongest pairs' excess, {percent(max(affinity.from_requests, 0))} comes of "
            "requests that favour both experts; the rest is the token's own."
        )
    if affinity.top_pairs_kept is not None and affinity.top_pairs_kept_by_chance is not None:
        words.append(
            f"The strongest pairs of one half of the {_halved(affinity)} are the other half's "
            f"for {percent(affinity.top_pairs_kept)}, {percent(affinity.top_pairs_kept_by_chance)} "
            "by chance."
        )
    if affinity.modularity_null is not None:
        words.append(
            f"Communities: modularity {affinity.modularity:.2f}, {affinity.modularity_null:.2f} "
            f"by chance; {_grouped(affinity)}"
        )
    return " ".join(words)


def _grouped(affinity: AffinityResult) -> str:
    stable = affinity.community_stability
    if stable is None:
        return "whether they last is not known."
    return f"halves agree on them to {stable:.2f} (adjusted Rand: 1 the same, 0 chance)."


def _next_words(affinity: AffinityResult) -> str:
    top1, popular = affinity.next_layer_top1, affinity.next_layer_top1_popularity
    recall, plain = affinity.next_layer_recall_k, affinity.next_layer_recall_k_popularity
    if top1 is None or popular is None or recall is None or plain is None:
        return ""
    interval = affinity.next_layer_top1_interval
    band = f" ({_range(interval.low, interval.high)})" if interval else ""
    verdict = (
        "A layer tells the next one's experts"
        if recall > 1.2 * plain
        else "A layer tells little of the next one's experts"
    )
    return (
        f"{verdict}: the likeliest successor of an expert is used next {percent(top1)} of the "
        f"time{band}, the most popular expert {percent(popular)}. The {affinity.top_k} likeliest "
        f"hold {percent(recall)} of a token's next experts, the {affinity.top_k} most popular "
        f"{percent(plain)}; judged on the other half of the {_halved(affinity)}."
    )


def _pairs(pairs: Sequence[ExpertPair]) -> str:
    if not pairs:
        return ""
    rows = [
        [
            pair.layer,
            f"{pair.experts[0]}, {pair.experts[1]}",
            f"{pair.together:,}",
            _few(pair.expected),
            times(pair.lift),
            f"{times(pair.lift_low)} - {times(pair.lift_high)}",
            " | ".join("-" if lift is None else times(lift) for lift in pair.lift_by_half),
        ]
        for pair in pairs
    ]
    columns = ["layer", "experts", "together", "by chance", "lift", "95 %", "lift by half"]
    return table(columns, rows, left=0)


def _layers(affinity: AffinityResult) -> str:
    """A row a layer, at most _ROWS spread over all."""
    pairs = {layer.layer: layer for layer in affinity.per_layer}
    moves = {move.layer: move for move in affinity.transitions}
    layers = sorted({*pairs, *moves})
    shown = layers[:: -(-len(layers) // _ROWS)]
    rows = [
        [number, *_pair_cells(pairs.get(number)), *_move_cells(moves.get(number))]
        for number in shown
    ]
    columns = ["layer", "more often", "less", "modularity", "groups", "next top-1", "popular"]
    told = table([*columns, "recall", "bits"], rows, left=0)
    left_out = len(layers) - len(shown)
    more = f" {left_out} more layers: --json." if left_out else ""
    return f"{told}\n" + wrapped(
        "more often, less: pairs beside chance. next top-1, popular, recall: as above, of the "
        "layer behind. bits: information on it that shuffling tokens within their request "
        f"takes away.{more}"
    )


def _pair_cells(layer: LayerAffinity | None) -> list[str]:
    if layer is None:
        return ["-"] * 4
    return [
        f"{layer.more_often:,}",
        f"{layer.less_often:,}",
        f"{layer.modularity:.2f}",
        f"{layer.communities}",
    ]


def _move_cells(move: LayerTransition | None) -> list[str]:
    if move is None:
        return ["-"] * 4
    shares = (move.top1, move.top1_popularity, move.recall_k)
    told = ["-" if share is None else percent(share) for share in shares]
    return [*told, f"{move.information_excess_bits:.3f}"]


def _counted_words(affinity: AffinityResult) -> str:
    phase = "" if affinity.phase == "all" else f"{affinity.phase} "
    words = (
        f"Counted: {counted(affinity.tokens_counted, f'{phase}token')} of "
        f"{counted(affinity.requests_counted, 'request')}"
    )
    if affinity.tokens_counted < affinity.tokens:
        words += f", drawn from {affinity.tokens:,} of {counted(affinity.requests, 'request')}"
    if affinity.blocks_of == "spans":
        words += ". One request alone: its spans judge each other, other requests may differ"
    return f"{words}; top-{affinity.top_k} of {affinity.experts}."


def _next_commands(affinity: AffinityResult, path: str) -> str:
    """What it is good for, and the commands that find out how good."""
    uses, verbs = [], []
    if affinity.modularity is not None:
        uses.append("experts that go together can share a GPU, so that tokens are sent to fewer")
        verbs.append(command("place", path, "--gpus", 8, "--solver", "coactivation"))
    if affinity.next_layer_top1 is not None:
        uses.append("those that follow can be fetched ahead")
        verbs.append(command("cache", "prefetch", path, "--predictor", "markov"))
    return "\n".join([wrapped(f"Good for: {'; '.join(uses)}."), *as_next(verbs)])


def _halved(affinity: AffinityResult) -> str:
    return "request" if affinity.blocks_of == "spans" else "requests"


def _range(low: float, high: float) -> str:
    return f"95 %: {100 * low:.1f} to {100 * high:.1f}"


def _factor(lift: float) -> str:
    return f"{lift:.0f}" if lift >= 10 else f"{lift:.1f}"


def _few(expected: float) -> str:
    return f"{expected:,.0f}" if expected >= 10 else f"{expected:.1f}"
