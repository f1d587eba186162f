"""Which slot of which GPU holds which expert of each layer, in EPLB's names, and its loads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moeprof.errors import InputError
from moeprof.placement.topology import Topology
from moeprof.result import Result


@dataclass(frozen=True, eq=False)
class Placement(Result):
    """A map of `experts` logical experts a layer on the slots of `topology`.

    `physical_to_logical_map` [layers, slots] holds logical ids, slots numbered GPU by GPU.
    Replicas of an expert share its load equally where a load is asked for. An expert twice on one
    GPU wastes a slot and is an error, but for maps that others made, as EPLB's: there
    (`allow_duplicates`) `duplicates` counts them. `expert_bytes` is one expert's size in one
    layer; with it, the slots are held against the topology's memory.

    Raises InputError, on the first rule that the map breaks, and InfeasibleError on memory.
    """

    physical_to_logical_map: NDArray[np.int64]
    experts: int
    topology: Topology
    allow_duplicates: bool = False
    expert_bytes: int | None = None

    def __post_init__(self) -> None:
        table = np.ascontiguousarray(self.physical_to_logical_map, dtype=np.int64)
        table.setflags(write=False)
        object.__setattr__(self, "physical_to_logical_map", table)
        self._refuse_shape()
        for problem in self.problems():
            raise InputError(problem)
        if self.expert_bytes is not None:
            self.topology.refuse_too_little_memory(self.layers, self.expert_bytes)

    def _refuse_shape(self) -> None:
        table = self.physical_to_logical_map
        slots = self.topology.slots_in_all
        if table.ndim != 2 or table.shape[1] != slots or not len(table):
            raise InputError(f"a map of shape {table.shape}; [layers, {slots}] is needed")

    def problems(self) -> Iterator[str]:
        """What is wrong with the map, a sentence each; nothing for a valid one."""
        table = self.physical_to_logical_map
        if table.min() < 0 or table.max() >= self.experts:
            yield f"the map names expert {_outside(table, self.experts)} of {self.experts}"
            return
        lacking = np.argwhere(self.logical_replica_count == 0)
        if len(lacking):
            layer, expert = lacking[0]
            yield f"layer {layer} of the map: expert {expert} has no slot"
        if self.duplicates and not self.allow_duplicates:
            layer, rank, expert = np.argwhere(self.copies_on_rank > 1)[0]
            yield f"layer {layer} of the map: expert {expert} stands twice on GPU {rank}"

    @property
    def layers(self) -> int:
        """Layers of the map; a row stands for a MoE layer, in order."""
        return len(self.physical_to_logical_map)

    @cached_property
    def logical_replica_count(self) -> NDArray[np.int64]:
        """[layers, experts] slots that hold each expert."""
        counts: NDArray[np.int64] = self.copies_on_rank.sum(axis=1)
        return counts

    @cached_property
    def logical_to_physical_map(self) -> NDArray[np.int64]:
        """[layers, experts, most replicas] the slots of each expert, ascending, then -1."""
        table = self.physical_to_logical_map
        most = int(self.logical_replica_count.max())
        inverse = np.full((self.layers, self.experts, most), -1, np.int64)
        order = np.argsort(table, axis=1, kind="stable")
        layer = np.arange(self.layers)[:, None]
        expert = table[layer, order]
        first = np.cumsum(self.logical_replica_count, axis=1) - self.logical_replica_count
        inverse[layer, expert, np.arange(table.shape[1]) - first[layer, expert]] = order
        return inverse

    @cached_property
    def copies_on_rank(self) -> NDArray[np.int64]:
        """[layers, gpus, experts] slots of each GPU that hold each expert; 0 or 1 when valid."""
        copies = np.zeros((self.layers, self.topology.gpus, self.experts), np.int64)
        layer = np.arange(self.layers)[:, None]
        np.add.at(copies, (layer, self.topology.rank_of_slot(), self.physical_to_logical_map), 1)
        return copies

    @property
    def duplicates(self) -> int:
        """Slots, over all layers, that hold an expert which their GPU holds already."""
        return int(np.maximum(self.copies_on_rank - 1, 0).sum())

    @property
    def redundant_bytes(self) -> int | None:
        """Memory that replicas beyond the first take, all layers and GPUs; None without a size."""
        if self.expert_bytes is None:
            return None
        return (self.topology.slots_in_all - self.experts) * self.layers * self.expert_bytes

    def rank_load(self, load: ArrayLike) -> NDArray[np.float64]:
        """[layers, gpus] what each GPU gets of `load` [layers, experts], replicas sharing equally.

        Raises InputError where `load` has another shape.
        """
        given = np.asarray(load, np.float64)
        if given.shape != (self.layers, self.experts):
            raise InputError(
                f"a load of shape {given.shape} for a map of {self.layers} layers "
                f"x {self.experts} experts"
            )
        share = given / self.logical_replica_count
        of_slot = np.take_along_axis(share, self.physical_to_logical_map, axis=1)
        ranks: NDArray[np.float64] = np.add.reduceat(
            of_slot, self.topology.first_slot()[:-1], axis=1
        )
        return ranks

    def imbalance_by_layer(self, load: ArrayLike) -> NDArray[np.float64]:
        """[layers] load of the busiest GPU over the mean of GPUs; 1 for a layer without load."""
        ranks = self.rank_load(load)
        mean = ranks.mean(axis=1)
        ratio: NDArray[np.float64] = np.divide(
            ranks.max(axis=1), mean, out=np.ones(self.layers), where=mean > 0
        )
        return ratio

    def imbalance(self, load: ArrayLike) -> float:
        """Mean over layers of `imbalance_by_layer`."""
        return float(self.imbalance_by_layer(load).mean())

    def moved_slots(self, before: Placement) -> int:
        """Experts that a GPU holds here and did not hold in `before`, over all layers.

        Each is one expert's weights to copy; slots that change places on one GPU are not.
        Raises InputError where the two maps are not of the same layers, experts and GPUs.
        """
        here, there = self.copies_on_rank, before.copies_on_rank
        if here.shape != there.shape:
            raise InputError(f"maps of {here.shape} and {there.shape} layers, GPUs and experts")
        return int(((here > 0) & (there == 0)).sum())


def _outside(table: NDArray[np.int64], experts: int) -> int:
    return int(table[(table < 0) | (table >= experts)][0])
