"""The machines that experts are placed on: GPUs, their slots and memory, and the links between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InfeasibleError, InputError
from moeprof.quantity import Quantity
from moeprof.result import Result

if TYPE_CHECKING:
    from moeprof.hardware.cluster import Cluster
    from moeprof.hardware.profile import HardwareProfile


@dataclass(frozen=True)
class Topology(Result):
    """`nodes` machines that share the GPUs evenly, in order of rank.

    A slot holds one expert of each layer. `slots` counts those of each GPU, `memory_bytes` what
    each may hold in experts, None where nobody said. The rates are of one GPU in one direction.
    """

    slots: tuple[int, ...]
    nodes: int = 1
    memory_bytes: tuple[int, ...] | None = None
    scale_up_bytes_per_s: Quantity | None = None  # to GPUs of the same node
    network_bytes_per_s: Quantity | None = None  # to GPUs of other nodes

    def __post_init__(self) -> None:
        if not self.slots:
            raise InputError("a topology without GPUs: give the slots of at least one")
        for rank, count in enumerate(self.slots):
            if count < 1:
                raise InputError(f"slots of GPU {rank} = {count}: each GPU has at least one")
        if self.nodes < 1 or self.gpus % self.nodes:
            raise InputError(f"{self.gpus} GPUs do not divide evenly over {self.nodes} nodes")
        if self.memory_bytes is not None and len(self.memory_bytes) != self.gpus:
            raise InputError(f"memory of {len(self.memory_bytes)} GPUs is given for {self.gpus}")

    @classmethod
    def even(cls, gpus: int, slots: int, nodes: int = 1) -> Topology:
        """`slots` in all, shared evenly by `gpus`.

        Raises InputError, with what would divide, where they do not.
        """
        if gpus < 1:
            raise InputError(f"{gpus} GPUs: there is at least one")
        if slots < gpus or slots % gpus:
            more = max(gpus, -(-slots // gpus) * gpus)
            raise InputError(
                f"{slots} slots do not divide evenly over {gpus} GPUs: "
                f"{more} would, {more - slots} redundant experts more"
            )
        return cls((slots // gpus,) * gpus, nodes)

    @classmethod
    def of_cluster(cls, cluster: Cluster, slots: Sequence[int]) -> Topology:
        """The GPUs of `cluster` with `slots` each, and its link rates where they are stated."""
        if len(slots) != cluster.gpus:
            raise InputError(f"slots of {len(slots)} GPUs are given; {cluster.name} has others")
        return cls(
            tuple(slots),
            cluster.nodes,
            scale_up_bytes_per_s=_scale_up_rate(cluster),
            network_bytes_per_s=_network_rate(cluster),
        )

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return len(self.slots)

    @property
    def gpus_per_node(self) -> int:
        """GPUs of one node."""
        return self.gpus // self.nodes

    @property
    def slots_in_all(self) -> int:
        """Slots of all GPUs: the physical experts of a layer."""
        return sum(self.slots)

    @property
    def is_even(self) -> bool:
        """Whether every GPU has the same number of slots."""
        return len(set(self.slots)) == 1

    def rank_of_slot(self) -> NDArray[np.int64]:
        """[slots] the GPU that holds each slot: slots are numbered GPU by GPU."""
        return np.repeat(np.arange(self.gpus), self.slots)

    def first_slot(self) -> NDArray[np.int64]:
        """[gpus + 1] the first slot of each GPU, and the number of slots."""
        return np.concatenate([[0], np.cumsum(self.slots)])

    def node_of_rank(self) -> NDArray[np.int64]:
        """[gpus] the node that each GPU is in."""
        return np.arange(self.gpus) // self.gpus_per_node

    def refuse_too_few_slots(self, experts: int) -> None:
        """Raises InputError where a layer's experts have no room."""
        if self.slots_in_all < experts:
            raise InputError(
                f"{self.slots_in_all} slots for {experts} experts: each needs one at least"
            )

    def refuse_too_little_memory(self, layers: int, expert_bytes: int) -> None:
        """Raises InfeasibleError where the slots of a GPU need more memory than it has.

        `expert_bytes` is one expert's size in one layer.
        """
        for rank, (count, room) in enumerate(
            zip(self.slots, self.memory_bytes or (), strict=False)
        ):
            if (need := count * layers * expert_bytes) > room:
                raise InfeasibleError(
                    f"GPU {rank}: {count} slots in {layers} layers take {need:,} bytes, "
                    f"{room:,} are free for experts; {room // (layers * expert_bytes)} slots fit"
                )


def _scale_up_rate(cluster: Cluster) -> Quantity | None:
    if cluster.scale_up is not None:
        return _stated(cluster.scale_up, "link_effective_bytes_per_s", "link_bytes_per_s")
    return _stated(cluster.profile, "all_to_all_bytes_per_s", "scale_up_bytes_per_s")


def _network_rate(cluster: Cluster) -> Quantity | None:
    if cluster.network is None:
        return None
    return _stated(cluster.network, "link_effective_bytes_per_s", "link_bytes_per_s")


def _stated(profile: HardwareProfile, *names: str) -> Quantity | None:
    """The first of the figures `names` that `profile` has."""
    return next((profile.figure(name) for name in names if name in profile.figures), None)
