"""What an engine's file needs of a plan, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.placement.plan import Plan


class Written(NamedTuple):
    """The content of the file, the flags that make the engine read it, and what to know."""

    content: bytes
    flags: str
    notes: list[str]


@dataclass(frozen=True)
class Wanted:
    """A plan on its way to `path`. `hidden_layers` and `gpu_experts` may be left to the plan."""

    plan: Plan
    path: str
    hidden_layers: int | None = None
    gpu_experts: int | None = None  # a layer, for engines that leave the rest to the CPU

    @property
    def depth(self) -> int:
        """Layers of the model, with and without experts: up to the last with, unless told."""
        least = max(self.plan.layers) + 1
        if self.hidden_layers is None:
            return least
        if self.hidden_layers < least:
            raise InputError(
                f"hidden layers {self.hidden_layers}: the plan has experts in layer {least - 1}"
            )
        return self.hidden_layers

    @property
    def redundant(self) -> int:
        """Slots of a layer beyond one for each expert."""
        placement = self.plan.placement
        return placement.topology.slots_in_all - placement.experts

    def refuse_uneven(self, engine: str) -> None:
        """Raise InputError unless every GPU has as many slots, as `engine` assumes."""
        if not self.plan.placement.topology.is_even:
            raise InputError(f"{engine} gives every GPU as many slots; this plan's GPUs differ")

    def by_hidden_layer(
        self, table: NDArray[np.int64], dense: NDArray[np.int64]
    ) -> list[list[int]]:
        """Rows of `table` at their native layers, `dense` where a layer has no experts."""
        rows = [dense.tolist()] * self.depth
        for layer, row in zip(self.plan.layers, table.tolist(), strict=True):
            rows[layer] = row
        return rows

    def load(self) -> NDArray[np.int64]:
        """[layers, experts] that the plan was fitted to. InputError where it does not say."""
        if self.plan.load is None:
            raise InputError(
                "which experts are hot is not in this plan: it was written without a load; "
                "solve it anew with place T --output"
            )
        return self.plan.load

    def hot_count(self) -> int:
        """Experts of a layer that the GPU holds: as asked, else as many as one GPU of the plan."""
        experts = self.plan.placement.experts
        count = self.gpu_experts
        if count is None:
            count = min(min(self.plan.placement.topology.slots), experts)
        if not 0 <= count <= experts:
            raise InputError(f"GPU experts {count}: a layer has {experts} of them")
        return count
