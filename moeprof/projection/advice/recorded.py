"""Expert loads of a recording for any number of ranks, and through a placement fitted to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moeprof.model import MoEModel
from moeprof.placement import Placement, Topology
from moeprof.placement.fitting import fit_placement
from moeprof.projection.routing import RoutingModel, TraceRouting, judged_windows, routing_for
from moeprof.projection.step.loads import ExpertLoads, RoutedLoads
from moeprof.trace import Trace

IN_ORDER, SOLVED = "in order of id", "solved placement"


@dataclass(frozen=True)
class RecordedRouting:
    """How `trace` routes `model`. Experts are placed by one half of the requests, and both placings
    are judged on the other; another model's recording needs `transfer`."""

    trace: Trace
    model: MoEModel
    transfer: str | None = None
    seed: int = 0

    def loads(self, ep: int) -> RoutedLoads:
        """On `ep` ranks, experts in order of id; of the whole recording."""
        if ep not in self._loads:
            self._loads[ep] = RoutedLoads(self._whole, ep)
        return self._loads[ep]

    def placed(self, ep: int) -> dict[str, RoutingModel]:
        """On `ep` ranks, judged on the second half: in order of id, and as solved on the first."""
        if ep not in self._placed:
            windows, _ = judged_windows(self.trace, self.seed)
            experts = self.trace.experts_per_layer
            topology = Topology.even(ep, -(-experts // ep) * ep)
            solved = fit_placement(self.trace, windows, topology, seed=self.seed)
            self._placed[ep] = {
                IN_ORDER: self._routing(None, windows.test),
                SOLVED: self._routing(solved, windows.test),
            }
        return self._placed[ep]

    def routings(self, ep: int) -> dict[str, ExpertLoads]:
        """The loads that a projection may hang on: recorded, and where ranks share whole experts
        also through the solved placement."""
        found: dict[str, ExpertLoads] = {"recorded": self.loads(ep)}
        if ep > 1:
            found["placed"] = RoutedLoads(self.placed(ep)[SOLVED], ep)
        return found

    @cached_property
    def _placed(self) -> dict[int, dict[str, RoutingModel]]:
        return {}

    @cached_property
    def _loads(self) -> dict[int, RoutedLoads]:
        return {}

    @cached_property
    def _whole(self) -> RoutingModel:
        return self._routing(None, None)

    def _routing(self, placement: Placement | None, keep: NDArray[np.bool_] | None) -> RoutingModel:
        recorded = TraceRouting(self.trace, placement, keep=keep, seed=self.seed)
        return routing_for(recorded, self.trace, self.model, self.transfer)
