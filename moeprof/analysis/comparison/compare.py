"""How two recordings differ: of two models, checkpoints, quantizations or workloads.

Every figure is computed of the recordings, of resampled requests (its interval) and of requests
dealt anew to A and B (its p-value), layer by layer from sums by request: one pass over the tokens.
docs/methods/comparison.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.comparison.agreement import judge_agreement, match_layer, shuffle_tokens
from moeprof.analysis.comparison.alignment import align_experts
from moeprof.analysis.comparison.differences import (
    judge_divergence,
    judge_together,
    make_difference,
)
from moeprof.analysis.comparison.draws import Draws, draw, label_codes
from moeprof.analysis.comparison.layers import AllDraws, LayerDraws, draw_alone, match_layers
from moeprof.analysis.comparison.pairing import (
    CommonTokens,
    Requests,
    are_same,
    find_common_tokens,
    find_requests,
)
from moeprof.analysis.comparison.request_sums import find_decode, sum_layer
from moeprof.analysis.comparison.results import (
    Agreement,
    Alignment,
    Difference,
    Divergence,
    Side,
    TraceComparison,
)
from moeprof.errors import InputError
from moeprof.threads import map_threads
from moeprof.trace import Trace

IMBALANCE = "mean_imbalance"  # of a layer, its imbalance
PERMUTATIONS = 999  # at least; more where so many layers are tested that one alone could not pass


class _Sides(NamedTuple):
    """The two recordings, their requests, and how these are drawn."""

    traces: tuple[Trace, Trace]
    requests: tuple[Requests, Requests]
    labels: list[str]  # that both have, where those are two or more
    layers: list[tuple[int, int]]  # that stand for each other; empty: the models are not alike
    paired: bool
    draws: Draws

    @property
    def codes(self) -> list[NDArray[np.intp]]:
        """Of each side [requests] place of the label in `labels`."""
        return [label_codes(requests, self.labels) for requests in self.requests]


def compare_traces(
    a: Trace, b: Trace, *, same_tokens: bool = False, align: bool = False, seed: int = 0
) -> TraceComparison:
    """How `b` differs from `a`, with intervals over requests and permutation tests.

    Where both recorded the same tokens, also how far they route them alike; `same_tokens` says
    that they did where the traces do not. `align` matches experts whose ids are not comparable, of
    two trainings say. Raises InputError where either holds no tokens or `align` has nothing to
    match experts by, TraceError on a damaged trace.
    """
    sides = _sides(a, b, seed)
    if sides.layers:
        differences, divergence = _compare_alike(sides)
    else:
        differences, divergence = _compare_unlike(sides), None
    return TraceComparison(
        a=_described(a, sides.requests[0]),
        b=_described(b, sides.requests[1]),
        paired=sides.paired,
        differences=differences,
        divergence=divergence,
        agreement=agree(a, b, same_tokens=same_tokens, seed=seed),
        alignment=_align(sides, same_tokens, seed) if align else None,
        not_compared=_not_compared(sides, differences),
        permutations=len(sides.draws.dealt),
        resamples=len(sides.draws.a) - 1,
        seed=seed,
    )


def _sides(a: Trace, b: Trace, seed: int) -> _Sides:
    for trace in (a, b):
        if not (trace.tokens or trace.counts_only):
            raise InputError(f"{trace}: holds no tokens to compare")
    one, other = find_requests(a), find_requests(b)
    labels = sorted((set(one.labels) & set(other.labels)) - {""})
    labels = labels if len(labels) > 1 else []
    layers = match_layers(a, b)
    paired = are_same(one, other)
    permutations = max(PERMUTATIONS, 25 * len(layers) - 1) if layers else 0
    draws = draw(one, other, paired=paired, permutations=permutations, seed=seed, labels=labels)
    return _Sides((a, b), (one, other), labels, layers, paired, draws)


def _described(trace: Trace, requests: Requests) -> Side:
    return Side(
        name=str(trace),
        model=trace.model.name,
        tokens=trace.tokens,
        requests=len(requests.indices),
        layers=len(trace.layers),
        experts=trace.experts_per_layer,
        top_k=trace.top_k,
    )


def _compare_alike(sides: _Sides) -> tuple[list[Difference], Divergence]:
    """Layer by layer, experts of one id taken as the same."""
    (a, b), (one, other), codes = sides.traces, sides.requests, sides.codes
    decode = find_decode(a, one), find_decode(b, other)
    draws = AllDraws(sides.draws, codes, len(sides.labels))

    def compare_layer(pair: tuple[int, int]) -> LayerDraws:
        sums = sum_layer(a, pair[0], one, decode[0]), sum_layer(b, pair[1], other, decode[1])
        return draws.figures(*sums, a.top_k)

    layers = map_threads(compare_layer, sides.layers)
    found = judge_together(
        [
            make_difference(
                metric,
                _mean(metric, (x.a for x in layers)),
                _mean(metric, (x.b for x in layers)),
                sides.draws,
            )
            for metric in layers[0].a
        ]
    )
    natives = [pair[0] for pair in sides.layers]
    by_layer = [
        make_difference("imbalance", x.a[IMBALANCE], x.b[IMBALANCE], sides.draws, native)
        for native, x in zip(natives, layers, strict=True)
    ]
    apart = np.stack([layer.divergence for layer in layers])
    return found + judge_together(by_layer), judge_divergence(natives, apart, sides.draws)


def _mean(metric: str, layers: Iterable[Mapping[str, NDArray[np.float64]]]) -> NDArray[np.float64]:
    """[draws] mean of `metric` over `layers`."""
    mean: NDArray[np.float64] = np.mean([layer[metric] for layer in layers], axis=0)
    return mean


def _compare_unlike(sides: _Sides) -> list[Difference]:
    """Of models that are not alike: figures that do not hang on how many experts there are."""
    figures = []
    for trace, requests, codes, weights in zip(
        sides.traces, sides.requests, sides.codes, sides.draws[:2], strict=True
    ):
        figures.append(draw_alone(trace, requests, weights, codes, len(sides.labels)))
    return judge_together(
        [make_difference(name, a, figures[1][name], sides.draws) for name, a in figures[0].items()]
    )


def agree(a: Trace, b: Trace, *, same_tokens: bool = False, seed: int = 0) -> Agreement | None:
    """How far `a` and `b` route the tokens alike that both recorded; None where none are known.

    With `same_tokens` tokens of one request and position are taken to be the same.
    """
    layers = match_layers(a, b)
    requests = find_requests(a), find_requests(b)
    common = _common(a, b, requests, same_tokens) if layers else None
    if common is None:
        return None
    shuffled = shuffle_tokens(len(common.request), seed)
    matches = map_threads(
        lambda pair: match_layer(
            a, b, pair, common, requests=len(requests[0].indices), shuffled=shuffled
        ),
        layers,
    )
    ordered = bool(a.manifest.rank_ordered and b.manifest.rank_ordered)
    natives = [pair[0] for pair in layers]
    return judge_agreement(natives, matches, common.known_by, ordered=ordered, seed=seed)


def _common(
    a: Trace, b: Trace, requests: tuple[Requests, Requests], same_tokens: bool
) -> CommonTokens | None:
    if a.counts_only or b.counts_only or not (same_tokens or are_same(*requests)):
        return None
    return find_common_tokens(a, b, *requests, same_tokens=same_tokens)


def _align(sides: _Sides, same_tokens: bool, seed: int) -> Alignment:
    a, b = sides.traces
    if a.counts_only or b.counts_only:
        raise InputError(f"{a} and {b}: experts of recordings of counts cannot be aligned")
    common = _common(a, b, sides.requests, same_tokens) if sides.layers else None
    return align_experts(a, b, sides.requests, common, sides.labels, seed)


def _not_compared(sides: _Sides, differences: Sequence[Difference]) -> list[str]:
    """What the two recordings do not tell, in sentences."""
    a, b = sides.traces
    said = []
    if not sides.layers:
        said.append(
            f"A has {len(a.layers)} layers of {a.experts_per_layer} experts, top-{a.top_k}, B has "
            f"{len(b.layers)} of {b.experts_per_layer}, top-{b.top_k}: single layers, experts and "
            "tokens cannot be compared, figures are over what an even router would show."
        )
    elif len(sides.layers) < max(len(a.layers), len(b.layers)):
        said.append(f"{len(sides.layers)} layers are in both and compared, the others are not.")
    if not len(sides.draws.a[1:]):
        said.append(
            "A recording of one request, or of counts, shows no spread: no intervals, no tests."
        )
    if not any(
        found.metric.startswith("next_token") or "repeat" in found.metric for found in differences
    ):
        said.append("Next-token repeat needs decode tokens that follow each other in both.")
    return said
