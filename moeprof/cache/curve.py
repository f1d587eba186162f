"""The exact LRU curve: hits at every cache size from one pass over the trace.

Contract 'atomic': all experts of an event, the distinct experts that one step needs in one
layer, are looked up against the state before the event; then all of them are the most recently
used, in the order the batch first names them. From a cache of at least one event's experts on,
this is what an engine does that serves all misses of a fused kernel before it runs. In a smaller
one the last experts of the event stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import refuse_foreign_ids
from moeprof.cache.events import Steps, event_chunks, find_steps
from moeprof.cache.requests import Scope, parse_scope
from moeprof.errors import InputError
from moeprof.result import NOT_JSON, Result
from moeprof.threads import map_threads
from moeprof.trace import Phase, Trace


@dataclass(frozen=True)
class LruCurve(Result):
    """LRU hits at every size. Index i of the lists is `slots[i]` slots.

    `slots` are per layer for scope layer and in all for scope global. A miss reads one expert of
    the recorded model, `bytes_per_expert` in `precision`; both byte figures are None where the
    model's tensors are not known.
    """

    scope: Scope
    contract: str
    policy: str
    phase: str  # whose tokens were replayed: all, prefill or decode
    slots: list[int]
    hit_ratio: list[float]
    misses_per_token: list[float]
    bytes_per_token: list[float] | None
    precision: str
    bytes_per_expert: int | None
    accesses: int
    first_uses: int  # accesses that no size can hit
    tokens: int
    events: int
    token_cycle: int  # slots, in all, that one token passes through: MoE layers x top-k
    hitless_slots: int  # slots, in all, up to which no global LRU hits: (MoE layers - 1) x top-k
    hits_by_layer: NDArray[np.int64] | None = field(
        repr=False, metadata=NOT_JSON
    )  # [layers, slots], scope layer

    def at(self, slots: int) -> float:
        """Hit ratio with `slots` slots (per layer or in all, as the scope says)."""
        return self.hit_ratio[min(slots, len(self.slots)) - 1] if slots else 0.0


def lru_curve(
    trace: Trace,
    *,
    scope: Scope | str = Scope.LAYER,
    phase: Phase | None = None,
    precision: str = "bf16",
) -> LruCurve:
    """LRU hit ratio at every number of slots, exact, in one pass over `trace`.

    With `phase`, only that phase's tokens are replayed; `precision` is the weight format that a
    miss reads. Raises InputError where nothing is, or for an unknown scope or format, and
    TraceError where the recording is damaged.
    """
    scope = parse_scope(scope)
    if scope is Scope.QUOTA:
        raise InputError("a curve over equal sizes has scope layer or global, not quota")
    if not trace.tokens or not trace.layers:
        raise InputError(f"{trace}: holds no tokens to replay")
    tokens = trace.tokens if phase is None else int((trace.phase == phase).sum())
    if not tokens:
        raise InputError(f"{trace}: holds no {Phase(phase or 0).name.lower()} tokens")
    layered = scope is Scope.LAYER
    steps = find_steps(trace, phase)
    histogram, events = _layer_histograms(trace, steps) if layered else _global(trace, steps)
    accesses = int(histogram.sum())
    if not accesses:
        raise InputError(f"{trace}: no layer was recorded for any token to replay")
    hits = np.cumsum(histogram[:, :-1], axis=1)
    total = hits.sum(axis=0)
    misses_per_token = (accesses - total) / tokens
    expert = trace.model.bytes_per_expert(precision) if trace.model.tensors else None
    return LruCurve(
        scope=scope,
        contract="atomic",
        policy="lru",
        phase="all" if phase is None else phase.name.lower(),
        slots=list(range(1, len(total) + 1)),
        hit_ratio=(total / accesses).tolist(),
        misses_per_token=misses_per_token.tolist(),
        bytes_per_token=None if expert is None else (misses_per_token * expert).tolist(),
        precision=precision,
        bytes_per_expert=expert,
        accesses=accesses,
        first_uses=int(histogram[:, -1].sum()),
        tokens=tokens,
        events=events,
        token_cycle=len(trace.layers) * trace.top_k,
        hitless_slots=(len(trace.layers) - 1) * trace.top_k,
        hits_by_layer=hits if layered else None,
    )


def layer_hits(trace: Trace, steps: Steps) -> NDArray[np.int64]:
    """[layers, experts] LRU hits of each layer's own cache of 1, 2, ... slots over `steps`."""
    histogram, _ = _layer_histograms(trace, steps)
    return np.cumsum(histogram[:, :-1], axis=1)


def _layer_histograms(trace: Trace, steps: Steps) -> tuple[NDArray[np.int64], int]:
    """[layers, experts + 1] stack distances, one cache a layer, layers on threads."""
    results = map_threads(lambda layer: _layer_histogram(trace, layer, steps), trace.layers)
    return np.stack([histogram for histogram, _ in results]), sum(n for _, n in results)


def _layer_histogram(trace: Trace, layer: int, steps: Steps) -> tuple[NDArray[np.int64], int]:
    from moeprof.cache.kernels import layer_distances  # Numba costs a second to import

    size = trace.experts_per_layer
    rank = np.arange(size).astype(np.uint8 if size <= 256 else np.uint16)
    stamp = np.full(size, -1, np.int64)
    histogram = np.zeros(size + 1, np.int64)
    for chunk in event_chunks(trace, [layer], steps):
        foreign = layer_distances(
            chunk.experts[0],
            chunk.recorded[0],
            chunk.starts,
            rank,
            stamp,
            chunk.first_event,
            histogram,
        )
        refuse_foreign_ids(trace, layer, foreign)
    return histogram, len(steps.starts) - 1


def _global(trace: Trace, steps: Steps) -> tuple[NDArray[np.int64], int]:
    """[1, layers x experts + 1] stack distances in one cache for all layers."""
    from moeprof.cache.kernels import global_distances, new_timeline

    layers, size = len(trace.layers), trace.experts_per_layer
    timeline = new_timeline(layers * size)
    stamp = np.full((layers, size), -1, np.int64)
    histogram = np.zeros(layers * size + 1, np.int64)
    for chunk in event_chunks(trace, trace.layers, steps):
        foreign = global_distances(
            chunk.experts,
            chunk.recorded,
            chunk.starts,
            timeline,
            stamp,
            chunk.first_event,
            histogram,
        )
        for layer, ids in zip(trace.layers, foreign.tolist(), strict=True):
            refuse_foreign_ids(trace, layer, ids)
    return histogram[None], (len(steps.starts) - 1) * layers
