"""Which experts go together in a layer, and what a layer tells about the next."""

from __future__ import annotations

from moeprof.analysis import AffinityResult
from moeprof.analysis.affinity import LayerTransition
from moeprof.report.blocks import Block, Cell, Section, Table
from moeprof.report.charts import SHARE, Chart, Measure, Series
from moeprof.report.contents import ReportContents
from moeprof.report.wording import counted, percent, times


def affinity_section(contents: ReportContents) -> Section | None:
    """Pairs, communities and transitions, each beside chance."""
    title, affinity = "Affinity", contents.affinity
    if affinity is None:
        reason = contents.missing.get("affinity")
        return Section("affinity", title, [f"Not shown: {reason}."], []) if reason else None
    lead = [*_pair_words(affinity), *_next_words(affinity), _counted(affinity)]
    blocks: list[Block] = []
    if affinity.per_layer:
        blocks.append(_communities(affinity))
    if any(move.top1 is not None for move in affinity.transitions):
        blocks.append(_next_layer(affinity))
    if affinity.strongest:
        blocks.append(_pairs(affinity))
    return Section("affinity", title, lead, blocks)


def _pair_words(affinity: AffinityResult) -> list[str]:
    if affinity.modularity is None or affinity.significant_pairs is None:
        return ["Tokens use one expert of a layer, so no two go together."]
    words = (
        f"{percent(affinity.significant_pairs)} of the pairs of a layer's experts are chosen "
        "together clearly more or less often than their loads explain."
    )
    if affinity.strongest:
        first = affinity.strongest[0]
        words += (
            f" The strongest: experts {first.experts[0]} and {first.experts[1]} of layer "
            f"{first.layer}, {times(first.lift)} as often as by chance."
        )
    if affinity.top_pairs_kept is not None and affinity.top_pairs_kept_by_chance is not None:
        words += (
            f" Of one half's strongest pairs {percent(affinity.top_pairs_kept)} are the other "
            f"half's too, {percent(affinity.top_pairs_kept_by_chance)} by chance."
        )
    return [words]


def _next_words(affinity: AffinityResult) -> list[str]:
    top1, popular = affinity.next_layer_top1, affinity.next_layer_top1_popularity
    if top1 is None or popular is None:
        return []
    interval = affinity.next_layer_top1_interval
    band = (
        f" (95 % interval {percent(interval.low)} to {percent(interval.high)})" if interval else ""
    )
    return [
        f"Knowing an expert of one layer, its likeliest successor is used in the next "
        f"{percent(top1)} of the time{band}; guessing the most popular one, {percent(popular)}. "
        "The difference is what one expert tells about the next layer."
    ]


def _counted(affinity: AffinityResult) -> str:
    words = (
        f"Counted over {counted(affinity.tokens_counted, 'token')} of "
        f"{counted(affinity.requests_counted, 'request')}"
    )
    if affinity.tokens_counted < affinity.tokens:
        words += f", a sample of {affinity.tokens:,} of {counted(affinity.requests, 'request')}"
    return f"{words}; what is guessed on one half of them is judged on the other."


def _communities(affinity: AffinityResult) -> Chart:
    layers = affinity.per_layer
    chance = [(one.layer, one.modularity_null) for one in layers if one.modularity_null is not None]
    values = [one.modularity for one in layers]
    null = Series("by chance at the same loads", "grey", chance, "dashed")
    return Chart(
        id="affinity-communities",
        title="Modularity of the communities that experts of a layer form",
        alt=f"Modularity of {len(values)} layers, {min(values):.3f} to {max(values):.3f}.",
        x=Measure("layer"),
        y=Measure("modularity", start=min(0.0, *values)),
        series=[
            Series(
                "as recorded",
                "a",
                [(one.layer, one.modularity) for one in layers],
                "stems",
                [
                    f"{one.communities} communities, {one.more_often:,} pairs more often and "
                    f"{one.less_often:,} less often than by chance"
                    for one in layers
                ],
            ),
            *([null] if chance else []),
        ],
        caption="Far above chance, experts that are chosen together can be put on one GPU."
        + ("" if len(chance) == len(layers) else " Chance is drawn for some layers, joined."),
    )


def _next_layer(affinity: AffinityResult) -> Chart:
    moves = [move for move in affinity.transitions if move.top1 is not None]
    k = affinity.top_k
    kinds = (
        ("the likeliest successor is used", "a", "top1", "stems"),
        ("the most popular expert is used", "d", "top1_popularity", "stems"),
        (f"of the next {k}, among the {k} likeliest", "b", "recall_k", "line"),
        (f"of the next {k}, among the {k} most popular", "grey", "recall_k_popularity", "dashed"),
    )
    return Chart(
        id="affinity-next-layer",
        title="What a layer tells about the next one's experts",
        alt="; ".join(
            f"{move.layer} to {move.next_layer}: {percent(move.top1 or 0)}" for move in moves
        ),
        x=Measure("layer"),
        y=Measure("share of a token's experts of the next layer", SHARE, start=0),
        series=[
            Series(name, hue, _shares(moves, field), style) for name, hue, field, style in kinds
        ],
        caption="Judged on requests that the successors were not counted on.",
    )


def _shares(moves: list[LayerTransition], field: str) -> list[tuple[float, ...]]:
    values = ((move.layer, getattr(move, field)) for move in moves)
    return [(layer, value) for layer, value in values if value is not None]


def _pairs(affinity: AffinityResult) -> Table:
    rows: list[list[Cell]] = [
        [
            pair.layer,
            f"{pair.experts[0]}, {pair.experts[1]}",
            f"{pair.together:,}",
            f"{pair.expected:,.1f}",
            times(pair.lift),
            f"{times(pair.lift_low)} to {times(pair.lift_high)}",
            f"{pair.q:.1g}",
        ]
        for pair in affinity.strongest
    ]
    return Table(
        title="The strongest pairs",
        columns=["layer", "experts", "tokens", "by chance", "lift", "95 % interval", "q"],
        rows=rows,
        note="Ordered by the lower end of the interval.",
    )
