"""Which experts go together: within a layer, and from one layer to the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.affinity.counting import Ids, sampled_ids
from moeprof.analysis.affinity.pairs import (
    Blocks,
    compare_to_chance,
    count_blocks,
    describe_pairs,
    kept_by_chance,
)
from moeprof.analysis.affinity.result import (
    AffinityResult,
    ExpertPair,
    LayerAffinity,
    LayerTransition,
)
from moeprof.analysis.affinity.sample import TokenSample, sample_tokens
from moeprof.analysis.affinity.transitions import Following, Judged, describe_transition
from moeprof.analysis.uncertainty import Interval, bootstrap
from moeprof.errors import InputError
from moeprof.threads import map_threads
from moeprof.trace import Phase, Trace

SHOWN = 10  # strongest pairs of all layers
JUDGED = 16  # layers at most whose communities stand beside chance: that takes its time


def analyze_affinity(trace: Trace, *, phase: Phase | None = None, seed: int = 0) -> AffinityResult:
    """Co-activation, communities and transitions of the tokens of `phase`, of all where None.

    Above 150,000 tokens whole requests are drawn by `seed`. Raises InputError where there are
    fewer than two tokens, or one expert a token in one layer; TraceError of counts and of damage.
    """
    sample = sample_tokens(trace, phase, seed)
    alone = trace.layers if 1 < trace.top_k < trace.experts_per_layer - 1 else ()
    judged = set(alone[:: -(-len(alone) // JUDGED) or 1])
    layers = map_threads(lambda at: _pairs(trace, at, sample, seed, at in judged), alone)
    moves = map_threads(lambda two: _transition(trace, two, sample), pairwise(trace.layers))
    per_layer = [layer for layer in layers if layer]
    following = [move for move in moves if move]
    if not per_layer and not following:
        raise InputError(
            f"{trace}: nothing goes together: needs two tokens of a layer with 2 to "
            f"{trace.experts_per_layer - 2} experts each, or of two layers"
        )
    shown = max(per_layer, key=lambda one: one.modularity, default=None)
    return AffinityResult(
        **_pair_means(per_layer, trace.experts_per_layer),
        **_move_means([move for move, _ in following]),
        next_layer_top1_interval=_interval([guesses for _, guesses in following], seed, sample),
        strongest=_strongest(per_layer),
        per_layer=per_layer,
        transitions=[move for move, _ in following],
        tokens=trace.tokens if phase is None else int((trace.phase == phase).sum()),
        tokens_counted=len(sample.rows),
        requests=sample.requests_recorded,
        requests_counted=sample.requests,
        blocks=sample.blocks,
        blocks_of="spans" if sample.spans else "requests",
        experts=trace.experts_per_layer,
        top_k=trace.top_k,
        phase="all" if phase is None else phase.name.lower(),
        seed=seed,
        shown_layer=None if shown is None else shown.layer,
        shown_lift=None if shown is None else layer_lift(trace, shown.layer, sample),
    )


def layer_lift(trace: Trace, layer: int, sample: TokenSample) -> NDArray[np.float32]:
    """[experts, experts] lift of each pair of a layer, 1 on the diagonal."""
    size = trace.experts_per_layer
    *_, blocks = _counted(trace, layer, sample)
    lift = np.eye(size, dtype=np.float32)
    lift[np.triu_indices(size, 1)] = compare_to_chance(blocks, trace.top_k).lift
    return np.maximum(lift, lift.T)


def _counted(
    trace: Trace, layer: int, sample: TokenSample
) -> tuple[Ids, NDArray[np.int64], NDArray[np.int64], Blocks]:
    """Ids, requests and blocks of the tokens that have the layer, and counts by block."""
    ids, there = sampled_ids(trace, layer, sample)
    ids, request, block = ids[there], sample.request[there], sample.block[there]
    return ids, request, block, count_blocks(ids, block, sample.blocks, trace.experts_per_layer)


def _pairs(
    trace: Trace, layer: int, sample: TokenSample, seed: int, judged: bool
) -> LayerAffinity | None:
    """None where not even two tokens have the layer."""
    counted = _counted(trace, layer, sample)
    return describe_pairs(layer, *counted, seed, judged) if len(counted[0]) > 1 else None


def _transition(
    trace: Trace, layers: tuple[int, int], sample: TokenSample
) -> tuple[LayerTransition, Judged] | None:
    """None where not even two tokens have both layers."""
    layer, next_layer = layers
    before, there = sampled_ids(trace, layer, sample)
    after, there_too = sampled_ids(trace, next_layer, sample)
    both = there & there_too
    if both.sum() < 2:
        return None
    tokens = Following(
        before=before[both],
        after=after[both],
        request=sample.request[both],
        block=sample.block[both],
        blocks=sample.blocks,
        size=trace.experts_per_layer,
    )
    return describe_transition(layer, next_layer, tokens)


def _pair_means(layers: Sequence[LayerAffinity], size: int) -> dict[str, float | None]:
    return {
        "modularity": _mean(layer.modularity for layer in layers),
        "modularity_null": _mean(layer.modularity_null for layer in layers),
        "significant_pairs": _mean(
            (layer.more_often + layer.less_often) / layer.pairs for layer in layers
        ),
        "from_requests": _mean(layer.from_requests for layer in layers),
        "split_half_correlation": _mean(layer.split_half_correlation for layer in layers),
        "top_pairs_kept": _mean(layer.top_pairs_kept for layer in layers),
        "top_pairs_kept_by_chance": kept_by_chance(size) if layers else None,
        "community_stability": _mean(layer.community_stability for layer in layers),
    }


def _move_means(moves: Sequence[LayerTransition]) -> dict[str, float | None]:
    return {
        "next_layer_top1": _mean(move.top1 for move in moves),
        "next_layer_top1_popularity": _mean(move.top1_popularity for move in moves),
        "next_layer_recall_k": _mean(move.recall_k for move in moves),
        "next_layer_recall_k_popularity": _mean(move.recall_k_popularity for move in moves),
        "next_layer_recall_2k": _mean(move.recall_2k for move in moves),
        "next_layer_recall_2k_popularity": _mean(move.recall_2k_popularity for move in moves),
        "information_bits": _mean(move.information_bits for move in moves),
        "information_excess_bits": _mean(move.information_excess_bits for move in moves),
        "normalized_information": _mean(move.normalized_information for move in moves),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _interval(judged: Sequence[Judged], seed: int, sample: TokenSample) -> Interval | None:
    """Of the mean over layers of top-1, blocks of requests drawn with replacement."""
    able = [guesses for guesses in judged if guesses.guesses.any()]
    if not able or sample.blocks < 2:
        return None
    right = np.stack([guesses.right for guesses in able])
    tried = np.stack([guesses.guesses for guesses in able])
    found = bootstrap(
        lambda weights: float(np.mean(right @ weights / np.maximum(tried @ weights, 1))),
        sample.blocks,
        seed=seed,
    )
    unit = "spans" if sample.spans else _unit(sample)
    return Interval(found.low, found.high, found.level, found.resamples, unit)


def _unit(sample: TokenSample) -> str:
    return "requests" if sample.blocks == sample.requests else "blocks of requests"


def _strongest(layers: Sequence[LayerAffinity]) -> list[ExpertPair]:
    pairs = (pair for layer in layers for pair in layer.strongest)
    return sorted(pairs, key=lambda pair: (-pair.lift_low, pair.layer, pair.experts))[:SHOWN]
