"""Where the routed experts of a layer stand: on ranks, some of them twice, or in host memory."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from moeprof.errors import InputError
from moeprof.hardware import Cluster, Kind
from moeprof.model import MoEModel, Precision
from moeprof.projection.parallelism import Parallelism
from moeprof.quantity import Quantity


@dataclass(frozen=True)
class ExpertSlots:
    """Slots of a MoE layer, over its `ep` groups of ranks.

    `redundant` slots hold experts a second time (vLLM's and SGLang's `num_redundant_experts`).
    Of `cache_slots` experts each layer holds so many on GPUs, and the rest in host memory.
    """

    redundant: int = 0
    cache_slots: int | None = None

    def check(self, model: MoEModel, split: Parallelism, cluster: Cluster) -> None:
        """Raises InputError for slots that `model` on `cluster` cannot have."""
        if not isinstance(self.redundant, int) or self.redundant < 0:
            raise InputError(f"redundant must be a whole number from 0 on, not {self.redundant!r}")
        if self.redundant:
            self._check_redundant(model, split)
        if self.cache_slots is not None:
            self._check_slots(model, self.cache_slots, cluster)

    def _check_redundant(self, model: MoEModel, split: Parallelism) -> None:
        if split.ep == 1:
            raise InputError(f"redundant {self.redundant}: only experts that go whole to ranks")
        if self.redundant > model.experts * (split.ep - 1):
            raise InputError(
                f"redundant {self.redundant} puts an expert of {model.name} twice on a rank"
            )
        if self.cache_slots is not None:
            raise InputError("redundant and cache_slots exclude each other: leave one out")

    def _check_slots(self, model: MoEModel, slots: int, cluster: Cluster) -> None:
        if not isinstance(slots, int) or not 0 <= slots <= model.experts:
            raise InputError(
                f"cache_slots must be a whole number of the {model.experts} experts a layer of "
                f"{model.name}, not {slots!r}"
            )
        if cluster.profile.kind is Kind.SOC and slots < model.experts:
            raise InputError(
                f"{cluster.profile.name} is its own host, so experts there are no cheaper: "
                "leave cache_slots out"
            )

    def resident(self, model: MoEModel, split: Parallelism) -> int:
        """Experts of a layer that one rank holds, second copies not counted."""
        local = ceil(model.experts / split.ep)
        return local if self.cache_slots is None else min(local, ceil(self.cache_slots / split.ep))

    def doubled(self, model: MoEModel, split: Parallelism) -> int:
        """Slots that a rank has for second copies."""
        return ceil((model.experts + self.redundant) / split.ep) - ceil(model.experts / split.ep)

    def host_share(self, model: MoEModel, split: Parallelism) -> float:
        """The part of the experts that stand in host memory alone."""
        if not model.experts:
            return 0.0
        return 1 - min(1.0, self.resident(model, split) * split.ep / model.experts)


def slot_bytes(model: MoEModel, precision: Precision, split: Parallelism, slots: int) -> int:
    """Bytes on a rank of `slots` experts of every MoE layer, each sliced `moe_tp` ways."""
    return sum(
        split.expert_bytes(model, group, precision.group_bytes(group), slots)
        for group in model.counted_tensors()
        if group.tensor_class == "routed"
    )


def host_bytes(
    stages: tuple[MoEModel, ...],
    precision: Precision,
    split: Parallelism,
    slots: ExpertSlots,
    gpus_per_node: int,
) -> Quantity:
    """Bytes of experts in the host memory of one node, which serves `gpus_per_node` ranks."""
    away = sum(
        precision.group_bytes(group) * slots.host_share(stage, split)
        for stage in stages
        for group in stage.counted_tensors()
        if group.tensor_class == "routed"
    )
    node = ceil(away * min(1.0, gpus_per_node / split.ranks))
    source = f"{precision.source}; experts beyond cache_slots, shared out over nodes"
    return Quantity(node, "bytes", precision.provenance, source=source)
