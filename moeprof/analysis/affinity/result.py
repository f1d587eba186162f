"""What affinity is answered with."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.uncertainty import Interval
from moeprof.result import NOT_JSON, Result


@dataclass(frozen=True)
class ExpertPair(Result):
    """Two experts of a layer that tokens use together."""

    layer: int
    experts: tuple[int, int]
    together: int  # tokens
    expected: float  # tokens, by chance at the same loads
    lift: float  # together / expected
    lift_low: float  # 95 %, requests as different as they are
    lift_high: float
    z: float
    q: float  # Benjamini-Hochberg, over the layer's pairs
    lift_by_half: tuple[float | None, float | None]  # of requests; None: none expected there


@dataclass(frozen=True)
class LayerAffinity(Result):
    """Which experts of one layer tokens use together. None: too little to tell."""

    layer: int
    tokens: int
    more_often: int  # pairs together more often than by chance, q < 0.05
    less_often: int
    pairs: int
    dispersion: float  # variance between blocks of requests over that of independent tokens
    from_requests: float | None  # share of the strongest pairs' excess that own loads give
    split_half_correlation: float | None  # of the pairs' excess in two halves of the requests
    top_pairs_kept: float | None  # share of one half's strongest pairs that are the other's
    modularity: float
    modularity_null: float | None  # as the stability, in some layers spread over all alone
    communities: int
    community_stability: float | None  # adjusted Rand index between halves
    community: list[int]  # by expert
    strongest: list[ExpertPair]


@dataclass(frozen=True)
class LayerTransition(Result):
    """What the experts of one layer tell about those of the next recorded one, token by token."""

    layer: int
    next_layer: int
    tokens: int
    information_bits: float  # between an expert and a next one of the same token, as counted
    information_bias_bits: float  # what counting alone gives: tokens shuffled
    information_null_bits: float  # tokens shuffled within their request
    information_excess_bits: float  # information less that null
    next_entropy_bits: float
    conditional_entropy_bits: float  # next_entropy_bits - information_excess_bits
    normalized_information: float  # information_excess_bits / next_entropy_bits
    top1: float | None  # share of assignments whose most likely successor is used next
    top1_popularity: float | None  # the same for the layer's most popular expert
    recall_k: float | None  # of the next experts among the k most likely
    recall_2k: float | None
    recall_k_popularity: float | None
    recall_2k_popularity: float | None


@dataclass(frozen=True)
class AffinityResult(Result):
    """Co-activation within layers, transitions between them. Means over layers; None: not known."""

    modularity: float | None  # None: tokens use one expert, none together
    modularity_null: float | None
    next_layer_top1: float | None
    next_layer_top1_interval: Interval | None
    next_layer_top1_popularity: float | None
    next_layer_recall_k: float | None
    next_layer_recall_k_popularity: float | None
    next_layer_recall_2k: float | None
    next_layer_recall_2k_popularity: float | None
    information_bits: float | None
    information_excess_bits: float | None
    normalized_information: float | None
    significant_pairs: float | None  # share of pairs, together more or less often than by chance
    from_requests: float | None
    split_half_correlation: float | None
    top_pairs_kept: float | None
    top_pairs_kept_by_chance: float | None
    community_stability: float | None
    strongest: list[ExpertPair]  # of all layers, by the lower end of lift
    per_layer: list[LayerAffinity]
    transitions: list[LayerTransition]
    tokens: int
    tokens_counted: int  # fewer where a sample was drawn
    requests: int
    requests_counted: int
    blocks: int
    blocks_of: str  # "requests", or "spans" of the one request
    experts: int
    top_k: int
    phase: str  # "all", "prefill" or "decode"
    seed: int
    shown_layer: int | None = None  # the layer of the largest modularity over its null
    shown_lift: NDArray[np.float32] | None = field(  # [experts, experts] of it
        default=None, repr=False, metadata=NOT_JSON
    )
