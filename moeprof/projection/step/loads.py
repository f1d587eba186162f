"""How many experts a step reads and how evenly ranks share its tokens, as its law takes them.

The constants were fitted with even routing as the reference, whatever the routing of the measured
models was. So another routing counts by its ratio to even routing on as many ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

from moeprof.model import MoEModel
from moeprof.placement import Placement
from moeprof.projection.routing import (
    RoutingModel,
    Shape,
    StepLoad,
    TraceRouting,
    UniformRouting,
    routing_for,
)
from moeprof.quantity import Provenance
from moeprof.trace import Phase, Trace


class ExpertLoads(Protocol):
    """Of steps of one deployment, by their tokens, mean over MoE layers.

    `provenance` is the weakest that a time can have which rests on them.
    """

    @property
    def provenance(self) -> Provenance:
        """Where they come from."""

    def distinct(self, tokens: float, consecutive: int = 1) -> float:
        """Experts that a layer of the busiest rank reads; of each sequence `consecutive` tokens."""

    def imbalance(self, tokens: float) -> float:
        """Assignments of a prompt's tokens on the busiest rank, over those of even routing."""


@dataclass(frozen=True)
class EvenLoads:
    """Independent uniform choices, each of `ep` ranks the mean one: N/EP (1 - (1 - k/N)^T)."""

    shape: Shape
    ep: int

    @property
    def provenance(self) -> Provenance:
        """The constants were fitted with this reference."""
        return Provenance.FITTED

    def distinct(self, tokens: float, consecutive: int = 1) -> float:
        """Experts that a layer of a rank reads; none in a dense model."""
        experts, top_k = self.shape.experts, self.shape.top_k
        return experts / self.ep * (1 - (1 - top_k / experts) ** tokens) if experts else 0.0

    def imbalance(self, tokens: float) -> float:
        """The reference itself."""
        return 1.0


class RoutedLoads:
    """A stated or recorded routing, relative to even routing on `ep` ranks."""

    def __init__(self, routing: RoutingModel, ep: int) -> None:
        self.routing, self.ep = routing, ep
        self._even = EvenLoads(routing.shape, ep)
        self._loads = cache(self._loads_of)

    @property
    def provenance(self) -> Provenance:
        """Of the routing."""
        return self.routing.load(1.0, self.ep).provenance

    def distinct(self, tokens: float, consecutive: int = 1) -> float:
        """As `ExpertLoads.distinct`."""
        if not tokens:
            return 0.0
        here, even = self._loads(float(tokens), Phase.DECODE, consecutive)
        ratio = here.most_distinct.mean() / even.most_distinct.mean()
        return self._even.distinct(tokens) * float(ratio)

    def imbalance(self, tokens: float) -> float:
        """As `ExpertLoads.imbalance`."""
        if not tokens:
            return 1.0
        here, even = self._loads(float(tokens), Phase.PREFILL, 1)
        return here.imbalance / even.imbalance

    def _loads_of(self, tokens: float, phase: Phase, consecutive: int) -> tuple[StepLoad, StepLoad]:
        even = UniformRouting(self.routing.shape).load(tokens, self.ep)
        here = self.routing.load(tokens, self.ep, phase=phase, consecutive=consecutive)
        return here, even


def recorded_loads(
    trace: Trace,
    model: MoEModel,
    *,
    ep: int = 1,
    placement: Placement | None = None,
    transfer: str | None = None,
) -> RoutedLoads:
    """The loads of `model` on `ep` ranks as `trace` recorded them, through `placement` if given.

    A recording of another model needs `transfer` (`routing.METHODS`), and what follows is assumed.
    Raises InputError without it.
    """
    return RoutedLoads(routing_for(TraceRouting(trace, placement), trace, model, transfer), ep)
