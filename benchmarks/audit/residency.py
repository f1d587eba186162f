"""How many experts a budget holds, and how often a needed one is among them.

Few sources count hits, so two laws stand in. With the share f of experts resident, of which a
token needs k of E, an LRU cache misses (1 - f) (k/E)^(s f) and a list of popular experts misses
(1 - f) (k/E)^(p f). s = p = 0 is routing without locality. `LRU_POINTS` are what s is fitted to.
"""

from __future__ import annotations

from math import exp, log
from typing import NamedTuple

from .runs import GB, Band, Run, Shape


class HitPoint(NamedTuple):
    """An LRU hit ratio somebody measured at a share of the experts."""

    model: str
    experts: int
    top_k: int
    share: float
    hit_ratio: float
    source: str


_WARP = "recording of sqliteai/warp @ 7f1fbba3"
_REAP = "recordings of imanu86/reap-loop @ 7c90f35d"
_PRINTS = "recordings of AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting @ 72b368f6"
_ONNX = "recording of justinchuby/onnx-genai @ ac9c7dd0"
_27861 = "https://github.com/ggml-org/llama.cpp/pull/27861"
LRU_POINTS = (  # of recordings: moeprof cache curve, at shares 1/8, 1/4 and 1/2
    HitPoint("deepseek-v4-flash", 256, 6, 0.125, 0.684, _REAP),
    HitPoint("deepseek-v4-flash", 256, 6, 0.25, 0.836, _REAP),
    HitPoint("deepseek-v4-flash", 256, 6, 0.5, 0.948, _REAP),
    HitPoint("gpt-oss-20b", 32, 4, 0.125, 0.437, _PRINTS),
    HitPoint("gpt-oss-20b", 32, 4, 0.25, 0.654, _PRINTS),
    HitPoint("gpt-oss-20b", 32, 4, 0.5, 0.898, _PRINTS),
    HitPoint("olmoe-1b-7b", 64, 8, 0.125, 0.434, _WARP),
    HitPoint("olmoe-1b-7b", 64, 8, 0.25, 0.597, _WARP),
    HitPoint("olmoe-1b-7b", 64, 8, 0.5, 0.794, _WARP),
    HitPoint("granite-3.0-1b", 32, 8, 0.125, 0.173, _ONNX),
    HitPoint("granite-3.0-1b", 32, 8, 0.25, 0.408, _ONNX),
    HitPoint("granite-3.0-1b", 32, 8, 0.5, 0.705, _ONNX),
    HitPoint("qwen3-30b-a3b", 128, 8, 0.4, 0.933, "https://github.com/kekzl/imp/pull/1359"),
    HitPoint("qwen3.8-flash-next", 512, 10, 0.125, 0.67, _27861),
    HitPoint("qwen3.8-flash-next", 512, 10, 0.25, 0.81, _27861),
)
LRU_LOCALITY = Band(
    1.49, 0.71, 1.98
)  # median of the points' own, and their 10th to 90th percentile
# A static list: .17 of 32 of 512 in 27861, .67 of 32 of 64 in JustVugg/colibri#864.
POPULARITY = Band(0.4, 0.0, 0.8)
# Only a bound is known where a budget was imputed: the whole card, which nobody can use whole.
IMPUTED_SHARE = Band(0.75, 0.5, 1.0)
RESERVE_BYTES = 1.0 * GB  # context, activations, graphs
# 16-bit draft models beside the target (SP-MoE), and the INT4 copy of the experts (MoE-SpeQ).
_DRAFT_BYTES = {"mixtral-8x7b": 14.5 * GB, "phi-3.5-moe": 15.3 * GB}
_INT4_COPY = 4.125 / 16


def own_locality(point: HitPoint) -> float:
    """s of the law, from one point."""
    missed = (1 - point.hit_ratio) / (1 - point.share)
    return log(missed) / (point.share * log(point.top_k / point.experts))


def miss_ratio(share: float, shape: Shape, locality: float) -> float:
    """The law above."""
    return (1 - share) * exp(locality * share * log(shape.top_k / shape.experts))


def resident_share(run: Run, of_bound: float) -> float:
    """The share of routed experts on the GPU; `of_bound` is used where the budget is imputed."""
    budget, shape = run.budget, run.shape
    if run.engine.residency == "none":
        return 0.0
    if budget.kind == "fraction":
        return budget.value
    if budget.kind == "experts_per_layer":
        return budget.value / shape.experts
    routed = shape.moe_layers * shape.experts * shape.expert_parameters * run.expert_bits / 8
    dense = (shape.token_parameters + shape.head_parameters) * run.dense_bits / 8
    memory = budget.value * GB * (of_bound if budget.imputed else 1.0)
    free = memory - RESERVE_BYTES - dense - draft_bytes(run, routed)
    moved = routed * moved_bits(run) / run.expert_bits
    return min(1.0, max(0.0, free / moved))


def draft_bytes(run: Run, routed: float) -> float:
    """GPU memory of what drafts tokens, where the budget is that of the card."""
    if run.engine.name == "moespeq":
        return routed * _INT4_COPY
    if run.speculative and run.budget.imputed:
        return _DRAFT_BYTES[run.shape.name]
    return 0.0


def moved_bits(run: Run) -> float:
    """Bits of a parameter as the engine moves and keeps it: Fate makes it INT4."""
    return 4.5 if run.lossy else run.expert_bits


def hit_ratio(run: Run, share: float, lru: float, popular: float) -> float:
    """Of an expert that a token needs, at `share` of the experts resident."""
    locality = {"lru": lru, "popular": popular, "placed": 0.0, "none": 0.0}[run.engine.residency]
    if run.engine.residency == "lru" and share * run.shape.experts < run.shape.top_k:
        locality = 0.0  # fewer slots than one token needs: nothing survives to the next
    return 1 - miss_ratio(share, run.shape, locality)
