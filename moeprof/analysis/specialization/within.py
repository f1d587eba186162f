"""Does routing depend on position, or on the phase? Parts of a request against each other.

Each request is its own control: its parts (quarters of its tokens, or its prompt and its answer)
are compared by their experts' shares, every request weighing the same, and the null shuffles the
parts within each request. So what a request is about, and which experts it prefers, cancels out.
Divergence as in `divergence.py`, between the parts' mean shares. The two are not independent: an
answer always comes after its prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import PHASE_NAMES, count_layer
from moeprof.analysis.specialization.divergence import divergence, shares
from moeprof.analysis.specialization.grouping import Assignments
from moeprof.analysis.uncertainty import (
    Interval,
    benjamini_hochberg,
    draw_requests,
    interval_of,
    permutation_p,
)
from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.threads import map_threads
from moeprof.trace import Phase, Trace

QUARTERS = ["first quarter", "second quarter", "third quarter", "last quarter"]
MIN_TOKENS = 8  # of each part, for a request to be compared
REQUESTS = 256  # more are sampled
DRAWS = 100  # shuffles, and resamples


@dataclass(frozen=True)
class LayerEffect(Result):
    """How far apart the parts are in one layer, in bits."""

    layer: int  # native index
    divergence: float
    null: float  # mean over shuffles
    p_value: float
    q_value: float  # over the layers


@dataclass(frozen=True)
class PartsEffect(Result):
    """How far apart the parts of a request are, mean over layers, in bits."""

    parts: list[str]
    requests: int  # that were compared
    divergence: float
    null: float  # mean over shuffles of the parts within each request
    excess: float  # divergence - null
    interval: Interval  # of the divergence, without the bias that noise adds to its estimate
    p_value: float
    layers: list[LayerEffect]


def analyze_position(
    trace: Trace, *, left_out: NDArray[np.bool_] | None = None, seed: int = 0
) -> PartsEffect:
    """Quarters of each request's tokens by position, without those `left_out` [tokens].

    Raises InputError where fewer than two requests are long enough, or positions are not known.
    """
    kept = (trace.request >= 0) & (trace.position >= 0)
    rows = np.flatnonzero(kept if left_out is None else kept & ~left_out)
    order = rows[np.lexsort((trace.position[rows], trace.request[rows]))]
    request = trace.request[order]
    starts = np.flatnonzero(np.diff(request, prepend=-1))
    lengths = np.diff(np.append(starts, len(order)))
    rank = np.arange(len(order)) - np.repeat(starts, lengths)
    part = np.full(trace.tokens, -1, np.int64)
    part[order] = rank * len(QUARTERS) // np.repeat(lengths, lengths)
    return _compare(trace, part, QUARTERS, seed)


def analyze_phase(
    trace: Trace, *, left_out: NDArray[np.bool_] | None = None, seed: int = 0
) -> PartsEffect:
    """Prompt against answer of each request, without the tokens `left_out` [tokens].

    Raises InputError where fewer than two requests have enough tokens of both.
    """
    kept = (trace.request >= 0) & (trace.phase != Phase.UNKNOWN)
    part = np.where(kept if left_out is None else kept & ~left_out, trace.phase, -1)
    names = [PHASE_NAMES[phase] for phase in (Phase.PREFILL, Phase.DECODE)]
    return _compare(trace, part.astype(np.int64), names, seed)


def _compare(trace: Trace, part: NDArray[np.int64], names: list[str], seed: int) -> PartsEffect:
    """Compare parts of requests; `part` [tokens] is the place in `names`, -1 for none."""
    parts = len(names)
    unit, requests = _units(trace, part, names, seed)
    rng = np.random.default_rng(seed)
    own = np.tile(np.arange(parts), requests)
    orders = rng.permuted(np.tile(np.arange(parts), (DRAWS, requests, 1)), axis=2)
    weights = draw_requests(requests, resamples=DRAWS, seed=seed).repeat(parts, axis=1)
    ways = (
        Assignments(own[None], parts),
        Assignments(orders.reshape(DRAWS, -1), parts),
        Assignments(own[None], parts, weights),
    )

    def walk(layer: int) -> list[NDArray[np.float64]]:
        counts = count_layer(trace, layer, unit, requests * parts + 1)[:-1]
        share = shares(counts.astype(np.float64))
        return [divergence(shares(way.sums(share))) for way in ways]

    walked = map_threads(walk, trace.layers)
    return _effect(trace.layers, walked, names, requests)


def _units(
    trace: Trace, part: NDArray[np.int64], names: list[str], seed: int
) -> tuple[NDArray[np.int32], int]:
    """[tokens] request x parts + part, the last for all others; and the requests compared."""
    known, request = np.unique(trace.request, return_inverse=True)
    code = request * len(names) + part
    sizes = np.bincount(code[part >= 0], minlength=len(known) * len(names))
    enough = np.flatnonzero((sizes.reshape(-1, len(names)) >= MIN_TOKENS).all(axis=1))
    if len(enough) < 2:
        raise InputError(
            f"{trace}: {len(enough)} requests have {MIN_TOKENS} tokens of each "
            f"({', '.join(names)}), at least 2 are needed"
        )
    if len(enough) > REQUESTS:
        chosen = np.random.default_rng(seed).choice(enough, REQUESTS, replace=False)
        enough = np.sort(chosen)
    place = np.full(len(known), -1, np.int64)
    place[enough] = np.arange(len(enough))
    unit = place[request] * len(names) + part
    others = len(enough) * len(names)
    inside = (place[request] >= 0) & (part >= 0)
    return np.where(inside, unit, others).astype(np.int32), len(enough)


def _effect(
    layers: tuple[int, ...],
    walked: list[list[NDArray[np.float64]]],
    names: list[str],
    requests: int,
) -> PartsEffect:
    observed = np.array([float(one[0][0]) for one in walked])
    null = np.stack([one[1] for one in walked])
    resampled = np.stack([one[2] for one in walked])
    p = [permutation_p(value, shuffled) for value, shuffled in zip(observed, null, strict=True)]
    q = benjamini_hochberg(p)
    whole, chance = float(observed.mean()), null.mean(axis=0)
    return PartsEffect(
        parts=names,
        requests=requests,
        divergence=whole,
        null=float(chance.mean()),
        excess=whole - float(chance.mean()),
        interval=interval_of(resampled.mean(axis=0), whole, kind="basic"),
        p_value=permutation_p(whole, chance),
        layers=[
            LayerEffect(layer, float(observed[i]), float(null[i].mean()), p[i], float(q[i]))
            for i, layer in enumerate(layers)
        ],
    )
