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

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import refuse_foreign_ids
from moeprof.analysis.uncertainty import (
    Interval,
    benjamini_hochberg,
    jackknife,
    permutation_p,
)
from moeprof.errors import InputError
from moeprof.result import NOT_JSON, Result
from moeprof.threads import map_threads
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
    """The tokens that are counted."""

    ids: NDArray[np.int32]  # [ids] vocabulary id of each code
    rows: NDArray[np.int64]  # [tokens] of the trace
    code: NDArray[np.int64]  # [tokens] place in `ids`
    shuffled: list[NDArray[np.int64]]  # the same, shuffled within requests
    block: NDArray[np.int64]  # [tokens] block of its request
    share: float  # that these are of the tokens of their requests
    plogp: NDArray[np.float64]  # [assignments + 1] n log2 n


class _Layer(NamedTuple):
    counts: NDArray[np.int64]  # [ids, experts]
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
    layers = map_threads(lambda layer: _walk(trace, layer, tokens), trace.layers)
    values = np.stack([layer.values for layer in layers])
    null = np.stack([layer.null for layer in layers])  # [layers, shuffles, 3]
    chance = null.mean(axis=1)
    explained = _adjusted(values[:, 2], chance[:, 2])
    p = [permutation_p(v[2], n[:, 2]) for v, n in zip(values, null, strict=True)]
    q = benjamini_hochberg(p)
    without = [_adjusted(x.left_out, c[2]) for x, c in zip(layers, chance, strict=True)]
    mean, mean_null = values.mean(axis=0), chance.mean(axis=0)
    return VocabularyResult(
        tokens=len(tokens.rows),
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
    rows = np.flatnonzero(inside & (ids[place] == trace.token_id))
    rows = rows[np.argsort(request[rows], kind="stable")]
    code, of = place[rows], request[rows]
    n = np.arange(len(rows) * trace.top_k + 1, dtype=np.float64)
    return _Tokens(
        ids,
        rows,
        code,
        [code[np.lexsort((rng.random(len(rows)), of))] for _ in range(SHUFFLES)],
        rank[of] % blocks,
        len(rows) / max(int(inside.sum()), 1),
        n * np.log2(n, out=np.zeros_like(n), where=n > 0),
    )


def _walk(trace: Trace, layer: int, tokens: _Tokens) -> _Layer:
    there, chosen = _chosen(trace, layer, tokens.rows)
    ids, experts = len(tokens.ids), trace.experts_per_layer

    def count(code: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
        """[groups, experts] assignments of the tokens of each of `code` [tokens]."""
        places = code[there][:, None] * experts + chosen
        return np.bincount(places.ravel(), minlength=groups * experts).reshape(groups, experts)

    def values(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return _values(counts, trace.top_k, tokens.plogp)

    blocks = int(tokens.block.max()) + 1
    by_block = count(tokens.block * ids + tokens.code, blocks * ids).reshape(blocks, ids, experts)
    counts = by_block.sum(axis=0)
    return _Layer(
        counts,
        values(counts),
        np.stack([values(count(code, ids)) for code in tokens.shuffled]),
        np.array([values(counts - part)[2] for part in by_block]),
        *_by_expert(counts, trace.top_k, tokens.plogp),
    )


def _chosen(
    trace: Trace, layer: int, rows: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """[rows] which have `layer`, and the experts of those, [those, k]."""
    recorded = trace.recorded(layer)
    there = recorded[rows]
    place = rows if recorded.all() else (np.cumsum(recorded) - 1)[rows[there]]
    chosen = trace.experts(layer)[place].astype(np.int64)
    refuse_foreign_ids(trace, layer, int((chosen >= trace.experts_per_layer).sum()))
    return there, chosen


def _values(
    counts: NDArray[np.int64], top_k: int, plogp: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Specialization, I(X; E) and explained share of `counts` [ids, experts]."""
    occurrences = counts.sum(axis=1) // top_k
    seen = occurrences > 0
    strongest = counts[seen].max(axis=1) / occurrences[seen]
    total = int(counts.sum())
    joint = plogp[counts].sum() - plogp[counts.sum(axis=0)].sum()
    information = (joint - plogp[counts.sum(axis=1)].sum() + plogp[total]) / max(total, 1)
    shared, whole = _choices(counts, top_k, plogp)
    mean = strongest.mean() if len(strongest) else 0.0
    return np.array([mean, information, shared.sum() / max(whole.sum(), 1e-300)])


def _by_expert(
    counts: NDArray[np.int64], top_k: int, plogp: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[experts] the share of each one's routing that ids explain, and KL(p(x|e) || p(x))."""
    shared, whole = _choices(counts, top_k, plogp)
    uses, ids = np.maximum(counts.sum(axis=0), 1), counts.sum(axis=1)
    ratio = (counts / uses) / np.maximum(ids / max(ids.sum(), 1), 1e-300)[:, None]
    logs = np.log2(ratio, out=np.zeros(ratio.shape), where=counts > 0)
    explained = np.divide(shared, whole, out=np.zeros(shared.shape), where=whole > 0)
    return explained, (counts / uses * logs).sum(axis=0)


def _choices(
    counts: NDArray[np.int64], top_k: int, plogp: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[experts] I(X; A_e) and H(A_e), times the tokens, in bits."""
    occurrences = counts.sum(axis=1) // top_k
    tokens, uses = occurrences.sum(), counts.sum(axis=0)
    whole = plogp[tokens] - plogp[uses] - plogp[tokens - uses]
    rest = plogp[occurrences[:, None] - counts].sum(axis=0)
    given = plogp[occurrences].sum() - plogp[counts].sum(axis=0) - rest
    return whole - given, whole


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
