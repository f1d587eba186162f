"""SCH: hits of an expert cache that sees the next m tokens, of the paper in `consistency.py`.

A cache of some slots a layer must take in every expert asked for. Where it is full, it first drops
the expert with the fewest uses in the tokens ahead, of those the least recently used. The experts
that fill it at first are free. All caches step through their sequences side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.expert_sets import Ids, layer_ids
from moeprof.analysis.runs import Runs
from moeprof.result import Result
from moeprof.trace import Trace

AHEAD = 16  # tokens of foresight, the token at hand among them
RATIOS = (1, 2, 4)  # slots of a layer over top-k
SEQUENCES, LENGTH = 8, 512  # spread over the requests; the paper's length
_USE = np.int64(1) << 32  # a use ahead counts for more than any recency
_NOT_HELD = np.iinfo(np.int64).max


@dataclass(frozen=True)
class SegmentCache(Result):
    """Hit rate by the slots of a layer, over the start of a few requests' decode tokens."""

    tokens_ahead: int  # m, the token at hand among them
    hit_ratio: dict[int, float]  # by slots of a layer
    sequences: int
    tokens: int  # of each


def replay_segment_cache(trace: Trace, runs: Runs) -> SegmentCache | None:
    """SCH of 1, 2 and 4 times top-k slots; None where no run has every layer throughout."""
    places = choose_sequences(runs)
    slots = [r * trace.top_k for r in RATIOS if r * trace.top_k < trace.experts_per_layer]
    layers = []
    whole = np.ones(len(places), bool)
    for layer in trace.layers:
        ids, recorded = layer_ids(trace, layer)
        whole &= recorded[places].all(axis=1)
        layers.append(ids[places])
    if not whole.any() or not slots:
        return None
    steps = np.concatenate(layers)[np.tile(whole, len(layers))].swapaxes(0, 1)
    lanes = np.repeat(slots, steps.shape[1])
    hits = cache_hits(np.tile(steps, (1, len(slots), 1)), trace.experts_per_layer, lanes, AHEAD)
    shares = hits.reshape(len(slots), -1).sum(axis=1) / steps.size
    ratios = dict(zip(slots, shares.tolist(), strict=True))
    return SegmentCache(AHEAD, ratios, int(whole.sum()), len(steps))


def choose_sequences(runs: Runs) -> NDArray[np.int64]:
    """[sequences, tokens] rows of the trace: the starts of a few runs among the longer quarter."""
    lengths = np.diff(runs.starts)
    length = min(LENGTH, int(np.quantile(lengths, 0.75)))
    long = np.flatnonzero(lengths >= length)
    chosen = long[np.linspace(0, len(long) - 1, min(SEQUENCES, len(long))).astype(int)]
    places = runs.starts[chosen][:, None] + np.arange(length)
    return np.asarray(runs.rows[places], np.int64)


def cache_hits(steps: Ids, experts: int, slots: NDArray[np.int64], ahead: int) -> NDArray[np.int64]:
    """[lanes] hits of caches of `slots` [lanes] on `steps` [tokens, lanes, k], a lane a cache.

    A token asks for its k experts at once, then the cache takes them in one by one. `ahead` is m.
    """
    caches = _Caches(experts, slots)
    for step in steps[:ahead]:
        caches.expect(step)
    hits: NDArray[np.int64] = np.zeros(len(slots), np.int64)
    for number, step in enumerate(steps):
        hits += caches.holds(step)
        for slot in range(step.shape[1]):
            hits += caches.take_in(step[:, slot], number * step.shape[1] + slot)
        if number + ahead < len(steps):
            caches.expect(steps[number + ahead])
    return hits


class _Caches:
    """Caches side by side: what each holds, and what an expert is worth to it."""

    def __init__(self, experts: int, slots: NDArray[np.int64]) -> None:
        self._lane = np.arange(len(slots))
        self._free = slots.copy()
        self._worth = np.zeros((len(slots), experts), np.int64)  # uses ahead, then recency
        self._held = np.zeros((len(slots), experts), bool)

    def expect(self, step: Ids) -> None:
        """A token that comes within sight asks for `step` [lanes, k]."""
        self._worth[self._lane[:, None], step] += _USE

    def holds(self, step: Ids) -> NDArray[np.int64]:
        """[lanes] how many of `step` [lanes, k] are held."""
        return np.asarray(np.count_nonzero(self._held[self._lane[:, None], step], axis=1), np.int64)

    def take_in(self, expert: NDArray[np.unsignedinteger], time: int) -> NDArray[np.bool_]:
        """Hold `expert` [lanes], used at `time`; which caches had a slot that was never filled."""
        missed = np.logical_not(self._held[self._lane, expert])
        free: NDArray[np.bool_] = missed & (self._free > 0)
        full = np.flatnonzero(missed & ~free)
        worth = np.where(self._held[full], self._worth[full], _NOT_HELD)
        self._held[full, worth.argmin(axis=1)] = False
        self._held[self._lane, expert] = True
        self._free -= free
        ahead = (self._worth[self._lane, expert] >> 32) - 1
        self._worth[self._lane, expert] = ahead * _USE + time + 1
        return free
