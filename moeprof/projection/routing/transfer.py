"""The routing of one model's recording, used for another: how far it is from even, by depth.

What is carried over is the ratio of each load to what even routing of the recorded model comes to
in a step of as many tokens on as many ranks. Even routing of the other model is multiplied by it,
layer by layer at the same relative depth. So the share of experts that a step leaves out, the
imbalance of ranks and what consecutive tokens share stay as far from chance as they were recorded;
that another model routes alike is assumed, whatever the recording.
"""

from __future__ import annotations

from dataclasses import replace

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.offload.transfer import by_depth, check_transfer
from moeprof.projection.routing.recorded import TraceRouting
from moeprof.projection.routing.step_load import (
    RoutingModel,
    Shape,
    StepLoad,
    check_step,
    compared_fields,
    with_fields,
)
from moeprof.projection.routing.uniform import UniformRouting, shape_of
from moeprof.quantity import Provenance
from moeprof.trace import Phase, Trace

METHODS = {
    "distinct-ratio": "distinct experts and busiest ranks as far from those of even routing as in "
    "the recording; layers matched by depth",
}


class TransferredRouting:
    """`recorded` as the routing of a model of another `shape`, by method distinct-ratio."""

    def __init__(self, recorded: RoutingModel, shape: Shape) -> None:
        self.recorded, self.shape = recorded, shape
        self.name = f"{recorded.name}, carried over"

    def load(
        self, tokens: float, ranks: int, *, phase: Phase = Phase.DECODE, consecutive: int = 1
    ) -> StepLoad:
        """As `RoutingModel.load`. Raises InputError where the recorded model has too few experts
        for as many ranks.
        """
        check_step(self.shape, tokens, ranks, consecutive)
        here = self.recorded.load(tokens, ranks, phase=phase, consecutive=consecutive)
        even = UniformRouting(self.recorded.shape).load(tokens, ranks)
        there = UniformRouting(self.shape).load(tokens, ranks)
        source = f"assumed to be as far from even routing as {here.source}"
        if not tokens:
            return there
        ratio = compared_fields(here) / compared_fields(even)
        layers = by_depth(self.recorded.shape.layers, self.shape.layers)
        values = compared_fields(there) * ratio[:, layers]
        return with_fields(replace(there, provenance=Provenance.ASSUMED, source=source), values)


def check_routing(trace: Trace, model: MoEModel, transfer: str | None) -> bool:
    """Whether `trace` has to be carried over to `model`.

    Raises InputError where it has and `transfer` does not say how, or is not in `METHODS`.
    """
    if not model.moe_layers:
        raise InputError(f"{model.name} has no MoE layers, so no recording says how it routes")
    return check_transfer(trace, model, transfer, METHODS)


def routing_for(
    recorded: TraceRouting, trace: Trace, model: MoEModel, transfer: str | None = None
) -> RoutingModel:
    """`recorded`, of `trace`, as the routing of `model`: itself, or carried over by `transfer`.

    Raises InputError as `check_routing` does.
    """
    if not check_routing(trace, model, transfer):
        return recorded
    return TransferredRouting(recorded, shape_of(model))
