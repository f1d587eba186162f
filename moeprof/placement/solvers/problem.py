"""What a solver is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.placement.annealing import Aim
from moeprof.placement.placement import Placement
from moeprof.placement.topology import Topology
from moeprof.threads import map_threads

Map = NDArray[np.int64]  # [layers, slots] logical experts


@dataclass(frozen=True, eq=False)
class Problem:
    """One call of `solve_placement`; each solver takes what it needs of it."""

    load: NDArray[np.float64]  # [layers, experts], finite, none negative, no layer empty
    topology: Topology
    seed: int = 0
    groups: int = 1  # of experts, for EPLB's hierarchical mode
    rounds: int = 100  # length of each layer's search
    max_imbalance: float | None = None  # what is good enough
    before: Placement | None = None  # the map in use
    windows: NDArray[np.float64] | None = None  # [windows, layers, experts] what load sums
    aim: Aim | None = None  # what an annealing solver weighs; None: its own
    routing: Sequence[NDArray[np.integer]] | None = None  # [tokens, top_k] ids of each layer

    @property
    def layers(self) -> int:
        """MoE layers."""
        return len(self.load)

    @property
    def experts(self) -> int:
        """Logical experts of a layer."""
        return int(self.load.shape[1])

    def by_layer(self, solve: Callable[[int], Any]) -> Map:
        """[layers, slots] from `solve(layer)` -> [slots], layers side by side in threads."""
        return np.array(map_threads(solve, range(self.layers)), np.int64)
