"""The same deployment under even routing, as recorded, and with experts placed."""

from __future__ import annotations

from dataclasses import dataclass

from moeprof.errors import MoeprofError
from moeprof.hardware import Cluster
from moeprof.model import MoEModel
from moeprof.projection import DeploymentProjection, Traffic, project_deployment
from moeprof.projection.routing import RoutingModel, TraceRouting, UniformRouting, routing_for
from moeprof.projection.routing.uniform import shape_of
from moeprof.projection.step.loads import RoutedLoads
from moeprof.quantity import Provenance
from moeprof.report.placing import PlacementComparison
from moeprof.result import Result
from moeprof.trace import Trace

STEPS = (1, 16, 64, 256)  # requests at a time
EVEN, RECORDED, PLACED = "even", "as recorded", "placed"


@dataclass(frozen=True)
class RoutedStep(Result):
    """Experts whole on every GPU, `concurrency` requests at a time, under one routing."""

    routing: str
    concurrency: int
    most_distinct: float  # experts that a layer of the busiest rank reads, mean over layers
    imbalance: float  # assignments of the busiest rank over the mean one's
    tpot_ms: float
    provenance: Provenance  # of the routing


def routed_steps(
    trace: Trace,
    model: MoEModel,
    cluster: Cluster,
    chosen: DeploymentProjection,
    traffic: Traffic,
    transfer: str | None,
    placement: PlacementComparison | None,
    missing: dict[str, str],
) -> list[RoutedStep]:
    """By routing, then by requests at a time; none, with the reason, where the recording is no use.

    The placed routing is judged on the tokens its map was not fitted on, and so is the recorded one
    where there is a map.
    """
    ranks = cluster.gpus if cluster.gpus <= max(model.experts, 1) else 1
    try:
        keep = None if placement is None else placement.window
        routings: dict[str, RoutingModel] = {EVEN: UniformRouting(shape_of(model))}
        recorded = TraceRouting(trace, keep=keep)
        routings[RECORDED] = routing_for(recorded, trace, model, transfer)
        if placement is not None and placement.placement is not None and ranks > 1:
            placed = TraceRouting(trace, placement.placement, keep=keep)
            routings[PLACED] = routing_for(placed, trace, model, transfer)
        return [
            _step(model, cluster, chosen, traffic, ranks, name, routing, requests)
            for name, routing in routings.items()
            for requests in STEPS
        ]
    except MoeprofError as error:
        missing["routed speed"] = str(error).replace(str(trace), "it")
        return []


def _step(
    model: MoEModel,
    cluster: Cluster,
    chosen: DeploymentProjection,
    traffic: Traffic,
    ranks: int,
    name: str,
    routing: RoutingModel,
    requests: int,
) -> RoutedStep:
    load = routing.load(requests, ranks)
    split = chosen.ledger.parallelism
    done = project_deployment(
        model,
        cluster,
        precision=chosen.ledger.precision,
        tp=split.tp,
        ep=ranks,
        dp=split.dp,
        concurrency=requests,
        input_len=traffic.input_len,
        output_len=traffic.output_len,
        loads=RoutedLoads(routing, ranks),
    )
    assert done.tpot_ms is not None
    return RoutedStep(
        routing=name,
        concurrency=requests,
        most_distinct=float(load.most_distinct.mean()),
        imbalance=load.imbalance,
        tpot_ms=done.tpot_ms.value,
        provenance=load.provenance,
    )
