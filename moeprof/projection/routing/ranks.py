"""What each rank reads and computes of a step, from how many tokens each expert has."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moeprof.placement import Placement, Topology
from moeprof.placement.replay import Share
from moeprof.placement.replay.load import replica_ranks
from moeprof.projection.routing.step_load import Floats

Counts = NDArray[np.int64]


@lru_cache(maxsize=64)
def neighbouring_experts(layers: int, experts: int, ranks: int) -> Placement:
    """Experts in order of id, as engines place them unasked; the first ranks hold one more."""
    each, more = divmod(experts, ranks)
    slots = tuple(each + (rank < more) for rank in range(ranks))
    return Placement(np.tile(np.arange(experts), (layers, 1)), experts, Topology(slots))


def measure_ranks(counts: Counts, placement: Placement, layer: int, share: Share) -> Floats:
    """[6] means over steps of `step_load.COMPARED`, for tokens of each expert [steps, experts].

    An expert is read on every rank that is given any of its tokens.
    """
    slots = _slot_tokens(counts, placement, layer, share)
    first = placement.topology.first_slot()[:-1]
    load = np.add.reduceat(slots, first, axis=1)  # [steps, ranks]
    read = np.add.reduceat((slots > 0).astype(np.int64), first, axis=1)
    steps = np.arange(len(load))
    means = (
        np.count_nonzero(counts, axis=1).mean(),
        read.mean(),
        read.max(axis=1).mean(),
        read[steps, load.argmax(axis=1)].mean(),
        load.max(axis=1).mean(),
        counts.max(axis=1).mean(),
    )
    return np.array(means)


def _slot_tokens(counts: Counts, placement: Placement, layer: int, share: Share) -> Floats:
    """[steps, slots] tokens of each slot, when replicas share theirs by the rule."""
    table = placement.physical_to_logical_map[layer]
    replicas = placement.logical_replica_count[layer][table]
    mine = counts[:, table]
    if (replicas == 1).all():
        return mine.astype(np.float64)
    if share is Share.ROUND_ROBIN:
        return np.asarray(mine // replicas + (_replica(table) < mine % replicas), np.float64)
    if share is Share.EQUAL:
        return np.asarray(mine / replicas)
    return _levelled(counts, placement, layer)


def _replica(table: Counts) -> Counts:
    """[slots] how many earlier slots hold the same expert."""
    order = np.argsort(table, kind="stable")
    place = np.arange(len(table))
    ordered = table[order]
    begin = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    number = np.zeros(len(table), np.int64)
    number[order] = place - np.maximum.accumulate(np.where(begin, place, 0))
    return number


def _levelled(counts: Counts, placement: Placement, layer: int) -> Floats:
    """The split that leaves the busiest rank least, as `Share.LP` replays it."""
    from moeprof.placement.replay.kernels import LEVEL, share_tokens

    first, ranks = replica_ranks(placement, layer)
    order = np.argsort(placement.physical_to_logical_map[layer], kind="stable")
    load = np.zeros(placement.topology.gpus)
    slots, each = np.zeros((len(counts), len(order))), np.zeros(len(order))
    for step, row in enumerate(counts):
        share_tokens(row, first, ranks, LEVEL, load, each)
        slots[step, order] = np.where(each > 1e-9, each, 0.0)
    return slots
