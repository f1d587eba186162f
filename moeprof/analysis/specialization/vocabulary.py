"""How much of routing the token's id alone explains, and which experts are of which ids.

The OLMoE paper (Muennighoff et al. 2024, arXiv 2409.02060, section 5.4) defines the vocabulary
specialization of expert e for token id x as N_(x,e) / N_x: the share of x's occurrences that choose
e. Of one id the strongest expert counts, and the mean over ids is shown, as in that paper's
scripts/run_moe_analysis.py; ids seen fewer than 10 times are left out, as there.

With A_e whether a token chooses e, X its id and I mutual information in bits:
expert_information = I(X; E), E an assignment's expert = sum_e p_e KL(p(x|e) || p(x)),
explained = sum_e I(X; A_e) / sum_e H(A_e), the share of routing that does not depend on context.
Few occurrences make both too large, so the null shuffles ids over the tokens of each request, which
keeps how often a request has each id and chooses each expert, and `explained` is adjusted for it as
in Vinh, Epps and Bailey 2010 (JMLR 11:2837): (explained - null) / (1 - null).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import count_layer
from moeprof.analysis.uncertainty import (
    Interval,
    benjamini_hochberg,
    jackknife,
    permutation_p,
)
from moeprof.errors import InputError
from moeprof.result import NOT_JSON, Result
from moeprof.trace import Trace

MIN_OCCURRENCES = 10
IDS = 1024  # the most frequent; others are left out
TOKENS = 65_536  # of whole requests; those of more are sampled
SHUFFLES = 19
BLOCKS = 10  # of requests, left out one at a time
SHOWN = 10


@dataclass(frozen=True)
class VocabularyExpert(Result):
    """An expert and a token id that nearly always goes to it."""

    layer: int  # native index
    expert: int
    token_id: int
    share: float  # of the id's occurrences: OLMoE's vocabulary specialization
    share_of_all: float  # of all tokens
    occurrences: int


@dataclass(frozen=True)
class LayerVocabulary(Result):
    """What token ids tell of one layer's routing."""

    layer: int  # native index
    specialization: float  # mean over ids of the strongest expert's share
    specialization_null: float
    expert_information: float  # I(X; E), bits
    expert_information_null: float
    explained: float  # share of routing explained by the id alone, adjusted for the null
    p_value: float
    q_value: float  # over the layers


@dataclass(frozen=True)
class VocabularyResult(Result):
    """What token ids tell of routing. Means over layers."""

    tokens: int  # that were counted
    token_share: float  # of those of the requests that were counted: the others' ids are rare
    ids: int
    specialization: float
    specialization_null: float
    expert_information: float
    expert_information_null: float
    explained: float
    interval: Interval  # of `explained`
    p_value: float
    layers: list[LayerVocabulary]
    experts: list[VocabularyExpert]  # the first 10 by how far the share exceeds that of all tokens
    explained_by_expert: NDArray[np.float64] = field(  # [layers, experts], not adjusted
        repr=False, metadata=NOT_JSON
    )
    concentration: NDArray[np.float64] = field(  # [layers, experts] KL(p(x|e) || p(x)), bits
        repr=False, metadata=NOT_JSON
    )


class _Tokens(NamedTuple):
    ids: NDArray[np.int32]  # [ids] vocabulary id of each code
    code: NDArray[np.int32]  # [tokens] place in `ids`, len(ids) where left out
    shuffled: list[NDArray[np.int32]]  # the same, shuffled within requests
    block: NDArray[np.int32]  # [tokens] block of its request, times len(ids) + 1, plus code
    blocks: int
    share: float


class _Layer(NamedTuple):
    counts: NDArray[np.float64]  # [ids, experts]
    values: NDArray[np.float64]  # specialization, information, explained
    null: NDArray[np.float64]  # [shuffles, 3]
    left_out: NDArray[np.float64]  # [blocks] explained
    expert: NDArray[np.float64]  # [experts] explained
    concentration: NDArray[np.float64]  # [experts]


def analyze_vocabulary(
    trace: Trace, *, left_out: NDArray[np.bool_] | None = None, seed: int = 0
) -> VocabularyResult:
    """What the ids of tokens tell of their experts, without the tokens `left_out` [tokens].

    Raises TraceError where token ids were not recorded, InputError where none comes 10 times.
    """
    tokens = _choose(trace, left_out, seed)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        layers = list(pool.map(lambda layer: _walk(trace, layer, tokens), trace.layers))
    values = np.stack([layer.values for layer in layers])
    null = np.stack([layer.null for layer in layers])  # [layers, shuffles, 3]
    chance = null.mean(axis=1)
    explained = _adjusted(values[:, 2], chance[:, 2])
    p = [permutation_p(v[2], n[:, 2]) for v, n in zip(values, null, strict=True)]
    q = benjamini_hochberg(p)
    without = [_adjusted(x.left_out, c[2]) for x, c in zip(layers, chance, strict=True)]
    mean, mean_null = values.mean(axis=0), chance.mean(axis=0)
    return VocabularyResult(
        tokens=int((tokens.code < len(tokens.ids)).sum()),
        token_share=tokens.share,
        ids=len(tokens.ids),
        specialization=float(mean[0]),
        specialization_null=float(mean_null[0]),
        expert_information=float(mean[1]),
        expert_information_null=float(mean_null[1]),
        explained=float(explained.mean()),
        interval=jackknife(np.mean(without, axis=0), float(explained.mean())),
        p_value=permutation_p(float(mean[2]), null[:, :, 2].mean(axis=0)),
        layers=[
            LayerVocabulary(
                layer=layer,
                specialization=float(values[i, 0]),
                specialization_null=float(chance[i, 0]),
                expert_information=float(values[i, 1]),
                expert_information_null=float(chance[i, 1]),
                explained=float(explained[i]),
                p_value=p[i],
                q_value=float(q[i]),
            )
            for i, layer in enumerate(trace.layers)
        ],
        experts=_strongest(trace, tokens, layers),
        explained_by_expert=np.stack([layer.expert for layer in layers]),
        concentration=np.stack([layer.concentration for layer in layers]),
    )


def _choose(trace: Trace, left_out: NDArray[np.bool_] | None, seed: int) -> _Tokens:
    """The tokens of frequent ids of as many requests as `TOKENS` allows."""
    rng = np.random.default_rng(seed)
    requests, request = np.unique(trace.request, return_inverse=True)
    order = rng.permutation(len(requests))
    before = np.cumsum(np.bincount(request)[order]) - np.bincount(request)[order]
    rank = np.empty(len(requests), np.int64)
    rank[order] = np.arange(len(requests))
    taken = np.zeros(len(requests), bool)
    taken[order[before < TOKENS]] = True
    inside = taken[request] & (trace.token_id >= 0)
    if left_out is not None:
        inside &= ~left_out
    ids, counts = np.unique(trace.token_id[inside], return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:IDS]
    ids = np.sort(ids[frequent[counts[frequent] >= MIN_OCCURRENCES]])
    blocks = min(BLOCKS, int(taken.sum()))
    if not len(ids) or blocks < 2:
        raise InputError(
            f"{trace}: needs token ids that come {MIN_OCCURRENCES} times, and 2 requests"
        )
    place = np.searchsorted(ids, trace.token_id).clip(max=len(ids) - 1)
    known = inside & (ids[place] == trace.token_id)
    code = np.where(known, place, len(ids)).astype(np.int32)
    block = rank[request] % blocks * (len(ids) + 1) + code
    return _Tokens(
        ids,
        code,
        [_shuffled(code, known, request, rng) for _ in range(SHUFFLES)],
        block.astype(np.int32),
        blocks,
        float(known.sum() / max(inside.sum(), 1)),
    )


def _shuffled(
    code: NDArray[np.int32],
    known: NDArray[np.bool_],
    request: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.int32]:
    """`code` [tokens] with those that are `known` shuffled within each request."""
    rows = np.flatnonzero(known)
    of = request[rows]
    apart = rows[np.argsort(of, kind="stable")]
    mixed = rows[np.lexsort((rng.random(len(rows)), of))]
    moved = code.copy()
    moved[apart] = code[mixed]
    return moved


def _walk(trace: Trace, layer: int, tokens: _Tokens) -> _Layer:
    ids = len(tokens.ids)
    blocks = count_layer(trace, layer, tokens.block, tokens.blocks * (ids + 1))
    by_block = blocks.reshape(tokens.blocks, ids + 1, -1)[:, :-1]
    counts = by_block.sum(axis=0)
    null = [_values(_count(trace, layer, code, ids), trace.top_k) for code in tokens.shuffled]
    left_out = [_values(counts - part, trace.top_k)[2] for part in by_block]
    return _Layer(
        counts.astype(np.float64),
        _values(counts, trace.top_k),
        np.stack(null),
        np.array(left_out),
        *_by_expert(counts, trace.top_k),
    )


def _count(trace: Trace, layer: int, code: NDArray[np.int32], ids: int) -> NDArray[np.int64]:
    return count_layer(trace, layer, code, ids + 1)[:-1]


def _values(counts: NDArray[np.int64], top_k: int) -> NDArray[np.float64]:
    """Specialization, I(X; E) and explained share of `counts` [ids, experts]."""
    occurrences = counts.sum(axis=1) / top_k
    seen = occurrences > 0
    strongest = counts[seen].max(axis=1) / occurrences[seen]
    total = max(counts.sum(), 1)
    joint = _plogp(counts).sum() - _plogp(counts.sum(axis=0)).sum()
    information = (joint - _plogp(counts.sum(axis=1)).sum() + _plogp(total)) / total
    shared, whole = _choices(counts, occurrences)
    return np.array([strongest.mean(), information, shared.sum() / max(whole.sum(), 1e-300)])


def _by_expert(
    counts: NDArray[np.int64], top_k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[experts] the share of each one's routing that ids explain, and KL(p(x|e) || p(x))."""
    shared, whole = _choices(counts, counts.sum(axis=1) / top_k)
    uses, ids = np.maximum(counts.sum(axis=0), 1), counts.sum(axis=1)
    ratio = (counts / uses) / np.maximum(ids / max(ids.sum(), 1), 1e-300)[:, None]
    logs = np.log2(ratio, out=np.zeros(ratio.shape), where=counts > 0)
    explained = np.divide(shared, whole, out=np.zeros(shared.shape), where=whole > 0)
    return explained, (counts / uses * logs).sum(axis=0)


def _choices(
    counts: NDArray[np.int64], occurrences: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[experts] I(X; A_e) and H(A_e), times the tokens, in bits."""
    n = occurrences.sum()
    uses = counts.sum(axis=0)
    whole = _plogp(n) - _plogp(uses) - _plogp(n - uses)
    rest = _plogp(occurrences[:, None] - counts)
    given = _plogp(occurrences).sum() - (_plogp(counts) + rest).sum(axis=0)
    return whole - given, whole


def _plogp(values: NDArray[np.int64] | NDArray[np.float64] | float) -> NDArray[np.float64]:
    """n log2 n; 0 for 0."""
    n = np.asarray(values, np.float64)
    result: NDArray[np.float64] = n * np.log2(n, out=np.zeros_like(n), where=n > 0)
    return result


def _adjusted(explained: NDArray[np.float64], null: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = (explained - null) / np.maximum(1 - null, 1e-9)
    return result


def _strongest(trace: Trace, tokens: _Tokens, layers: list[_Layer]) -> list[VocabularyExpert]:
    """The places where an id's share of an expert exceeds that of all tokens by most."""
    found = []
    for layer, one in zip(trace.layers, layers, strict=True):
        occurrences = one.counts.sum(axis=1) / trace.top_k
        of_all = one.counts.sum(axis=0) / max(occurrences.sum(), 1)
        share = one.counts / np.maximum(occurrences, 1)[:, None]
        beyond = share - of_all
        for place in np.argsort(-beyond, axis=None, kind="stable")[:SHOWN]:
            x, e = divmod(int(place), beyond.shape[1])
            found.append(
                VocabularyExpert(
                    layer=layer,
                    expert=e,
                    token_id=int(tokens.ids[x]),
                    share=float(share[x, e]),
                    share_of_all=float(of_all[e]),
                    occurrences=round(float(occurrences[x])),
                )
            )
    return sorted(found, key=lambda one: one.share_of_all - one.share)[:SHOWN]
