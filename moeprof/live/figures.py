"""The figures of a window, by the definitions of `analyze load` and of cache replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moeprof.analysis.evenness import imbalance
from moeprof.live.source import RankStatus, Shape, Status
from moeprof.live.tally import Tally
from moeprof.result import Result

HOTTEST = 32  # experts listed


@dataclass(frozen=True)
class LayerFigures(Result):
    """One layer in the window."""

    layer: int  # native index
    imbalance: float  # max / mean of the assignments to its experts
    distinct: float | None  # experts that a decode step needs, mean; None: no decode step


@dataclass(frozen=True)
class HotExpert(Result):
    """An expert that many tokens go to."""

    layer: int
    expert: int
    share: float  # of the layer's assignments
    times_even: float  # that share times the number of experts


@dataclass(frozen=True)
class SlotHits(Result):
    """Expert caches of `slots` slots a layer under LRU, contract atomic, over decode tokens."""

    slots: int
    hits: int
    accesses: int
    hit_ratio: float


@dataclass(frozen=True)
class LiveFigures(Result):
    """How a source stands, and the figures of the window. None: not known, or nothing to tell from.

    Rates are of the last ten seconds that were watched; totals of the recording, but those by
    phase, which are of what was watched. Layers in which nothing was recorded are left out of the
    means.
    """

    source: str
    state: str  # recording, waiting, gone or ended
    words: str
    model: str
    engine: str
    layers: int
    experts: int
    top_k: int
    tokens: int
    prefill_tokens: int
    decode_tokens: int
    tokens_per_s: float | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    window_steps: int
    window_tokens: int
    mean_imbalance: float | None  # mean over layers
    max_imbalance: float | None
    per_layer: list[LayerFigures]
    hottest: list[HotExpert]
    distinct_per_step: float | None  # experts that a decode step needs in a layer, mean
    distinct_null: float | None  # the same if each token chose for itself
    lru: list[SlotHits]
    dropped: dict[str, int]
    sampled_out: int
    rotated: int
    unseen_tokens: int  # recorded and let go before they could be seen: figures lack them
    pending_bytes: int | None
    written_bytes: int | None
    ranks: list[RankStatus]
    errors: int  # polls that failed


@dataclass(frozen=True)
class Rates:
    """Tokens recorded per second."""

    total: float | None = None
    prefill: float | None = None
    decode: float | None = None


def live_figures(
    source: str, status: Status, rates: Rates, tally: Tally | None, slots: Sequence[int]
) -> LiveFigures:
    """Figures of the window that `tally` sums up; None where nothing was recorded yet."""
    shape = status.shape
    return LiveFigures(
        source=source,
        state=status.state.value,
        words=status.words,
        model=status.model,
        engine=status.engine,
        layers=len(shape.layers) if shape else 0,
        experts=shape.experts if shape else 0,
        top_k=shape.top_k if shape else 0,
        tokens=status.tokens,
        prefill_tokens=status.prefill_tokens,
        decode_tokens=status.decode_tokens,
        tokens_per_s=rates.total,
        prefill_tokens_per_s=rates.prefill,
        decode_tokens_per_s=rates.decode,
        window_steps=tally.steps if tally else 0,
        window_tokens=tally.tokens if tally else 0,
        dropped=dict(status.dropped),
        sampled_out=status.sampled_out,
        rotated=status.rotated,
        unseen_tokens=status.unseen_tokens,
        pending_bytes=status.pending_bytes,
        written_bytes=status.written_bytes,
        ranks=list(status.ranks),
        errors=status.errors,
        **_of_window(tally, shape, slots),
    )


def _of_window(tally: Tally | None, shape: Shape | None, slots: Sequence[int]) -> dict[str, Any]:
    if tally is None or shape is None or not tally.load.any():
        return {
            "mean_imbalance": None,
            "max_imbalance": None,
            "per_layer": [],
            "hottest": [],
            "distinct_per_step": None,
            "distinct_null": None,
            "lru": [],
        }
    there = tally.load.any(axis=1)
    ratio = imbalance(tally.load)
    events = tally.events.sum()
    return {
        "mean_imbalance": float(ratio[there].mean()),
        "max_imbalance": float(ratio[there].max()),
        "per_layer": _per_layer(tally, shape),
        "hottest": hottest_experts(tally, shape),
        "distinct_per_step": float(tally.distinct.sum() / events) if events else None,
        "distinct_null": independent_distinct(tally, shape),
        "lru": _slot_hits(tally, slots),
    }


def _per_layer(tally: Tally, shape: Shape) -> list[LayerFigures]:
    ratio = imbalance(tally.load)
    return [
        LayerFigures(layer, float(ratio[i]), float(tally.distinct[i] / events) if events else None)
        for i, (layer, events) in enumerate(zip(shape.layers, tally.events, strict=True))
        if tally.load[i].any()
    ]


def hottest_experts(tally: Tally, shape: Shape, count: int = HOTTEST) -> list[HotExpert]:
    """The experts with the largest shares of their layer's assignments, largest first."""
    share = tally.load / np.maximum(tally.load.sum(axis=1, keepdims=True), 1)
    flat = share.ravel()
    order = np.argsort(-flat, kind="stable")[:count]
    places = zip(*np.unravel_index(order, share.shape), strict=True)
    return [
        HotExpert(shape.layers[i], int(e), float(share[i, e]), float(share[i, e] * shape.experts))
        for i, e in places
        if share[i, e]
    ]


def independent_distinct(tally: Tally, shape: Shape) -> float | None:
    """Experts that an event would need, mean, if each token chose for itself.

    Of B tokens sum_e 1 - (1 - p_e)^B, with p_e = n_e k / N the share of the layer's decode tokens
    that use e, as `distinct_null` of `analyze locality`; B as the events have it.
    """
    events = tally.events.sum()
    if not events:
        return None
    total = np.maximum(tally.decode_load.sum(axis=1, keepdims=True), 1)
    missed = 1 - np.minimum(tally.decode_load * shape.top_k / total, 1)
    expected = 0.0
    for size, layers in tally.sizes.items():
        expected += float((layers * (1 - missed**size).sum(axis=1)).sum())
    return expected / float(events)


def _slot_hits(tally: Tally, slots: Sequence[int]) -> list[SlotHits]:
    accesses = int(tally.distinct.sum())
    if not accesses:
        return []
    hits = tally.hits.sum(axis=1).tolist()
    return [SlotHits(n, h, accesses, h / accesses) for n, h in zip(slots, hits, strict=True)]
