"""What every rank is given in every step, when a trace's tokens meet a placement."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import refuse_foreign_ids
from moeprof.errors import InputError
from moeprof.placement.placement import Placement
from moeprof.threads import map_threads
from moeprof.trace import Batching, Trace


class Share(StrEnum):
    """How the replicas of an expert share the tokens of a step."""

    EQUAL = "equal"  # in equal parts, as EPLB's arithmetic has it
    ROUND_ROBIN = "round-robin"  # whole tokens in turn, from the first replica in every step
    LP = "lp"  # so that the busiest rank has least: what a linear program a batch would find


class RoutedIds(NamedTuple):
    """The expert ids of a trace in memory, layer by layer, and where each token's are."""

    trace: Trace
    experts: list[NDArray[np.unsignedinteger]]  # by layer [recorded tokens, k]
    place: list[NDArray[np.int64] | None]  # by layer [tokens] row in `experts`, -1; None: the same

    @classmethod
    def of(cls, trace: Trace) -> RoutedIds:
        """All ids of `trace`: a trace in one piece is not copied."""
        place: list[NDArray[np.int64] | None] = []
        for layer in trace.layers:
            mask = trace.recorded(layer)
            place.append(None if mask.all() else np.where(mask, np.cumsum(mask) - 1, -1))
        return cls(trace, [trace.experts(layer) for layer in trace.layers], place)


class RankLoads(NamedTuple):
    """Loads in assignments; S steps."""

    total: NDArray[np.float64]  # [layers, gpus] of all steps
    busiest: NDArray[np.float64]  # [layers, S] of the rank that has most of that layer
    assigned: NDArray[np.int64]  # [layers, S] of all ranks

    def imbalance_by_layer(self) -> NDArray[np.float64]:
        """[layers] busiest over mean rank of the sum; 1 for a layer without assignments."""
        mean = self.total.mean(axis=1)
        ratio: NDArray[np.float64] = np.divide(
            self.total.max(axis=1), mean, out=np.ones(len(mean)), where=mean > 0
        )
        return ratio

    def waited(self) -> NDArray[np.float64]:
        """[S] what the collectives of a step wait for: the busiest rank's load, summed by layer."""
        waited: NDArray[np.float64] = self.busiest.sum(axis=0)
        return waited

    def even(self) -> NDArray[np.float64]:
        """[S] the same, were every layer's load even over the ranks."""
        even: NDArray[np.float64] = self.assigned.sum(axis=0) / self.total.shape[1]
        return even


def replay_ranks(
    ids: RoutedIds, steps: Batching, placement: Placement, share: Share | str = Share.EQUAL
) -> RankLoads:
    """The load of every rank of `placement` in `steps`. Layers run on threads of their own.

    Raises InputError where the placement has other layers or experts than the trace, TraceError
    where an id names no expert.
    """
    from moeprof.placement.replay import kernels

    trace = ids.trace
    refuse_other_shape(trace, placement)
    rule = {Share.EQUAL: kernels.EQUAL, Share.ROUND_ROBIN: kernels.ROUND_ROBIN}.get(
        parse_share(share), kernels.LEVEL
    )
    layers, count = len(trace.layers), len(steps.starts) - 1
    total = np.zeros((layers, placement.topology.gpus))
    busiest, assigned = np.zeros((layers, count)), np.zeros((layers, count), np.int64)

    def run(row: int) -> None:
        place = ids.place[row]
        rows = steps.order if place is None else place[steps.order]
        first, ranks = replica_ranks(placement, row)
        out = (total[row], busiest[row], assigned[row])
        foreign = kernels.replay_layer(
            ids.experts[row], rows, steps.starts, first, ranks, rule, *out
        )
        refuse_foreign_ids(trace, trace.layers[row], foreign)

    map_threads(run, range(layers))
    return RankLoads(total, busiest, assigned)


def replica_ranks(placement: Placement, row: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[experts + 1] and [slots]: expert e of a layer is on ranks[first[e]:first[e + 1]]."""
    order = np.argsort(placement.physical_to_logical_map[row], kind="stable")
    counts = placement.logical_replica_count[row]
    return np.concatenate([[0], np.cumsum(counts)]), placement.topology.rank_of_slot()[order]


def parse_share(share: Share | str) -> Share:
    """The rule called `share`. Raises InputError."""
    try:
        return Share(share)
    except ValueError:
        raise InputError(f"share '{share}' is not one of {', '.join(Share)}") from None


def refuse_other_shape(trace: Trace, placement: Placement) -> None:
    """Raise InputError unless the maps of `placement` are of the layers and experts of `trace`."""
    here: Sequence[int] = (len(trace.layers), trace.experts_per_layer)
    there = (placement.layers, placement.experts)
    if tuple(here) != there:
        raise InputError(
            f"{trace}: {here[0]} layers of {here[1]} experts were recorded, the placement is of "
            f"{there[0]} layers of {there[1]}"
        )
