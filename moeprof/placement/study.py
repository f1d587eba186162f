"""All that a placement's figures show, gathered from a trace once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import MoeprofError
from moeprof.placement.coactivation_graph import CoactivationGraph, coactivation_graph
from moeprof.placement.matrix import NodeTraffic, node_traffic
from moeprof.placement.online import OnlineResult, place_online
from moeprof.placement.place import PlacementResult, place_trace
from moeprof.placement.placement import Placement
from moeprof.placement.solve import solve_placement
from moeprof.placement.sweep import RedundancySweep, sweep_redundancy
from moeprof.placement.topology import Topology
from moeprof.placement.windows import split_windows
from moeprof.result import NOT_JSON, Result
from moeprof.trace import Trace

_REBALANCES = 12
_LAYOUTS = (0, 1, 2, 4)  # redundant slots a GPU that the sweep tries


@dataclass(frozen=True)
class PlacementStudy(Result):
    """A placement and what stands around it. What could not be computed is None; `missing` says
    why, by the field's name.
    """

    placed: PlacementResult
    name: str  # of the recorded model
    eplb_imbalance: float  # of EPLB's map, on the later window
    load_before: NDArray[np.float64] = field(repr=False, metadata=NOT_JSON)  # [layers, gpus]
    load_after: NDArray[np.float64] = field(repr=False, metadata=NOT_JSON)
    sweep: RedundancySweep | None
    online: OnlineResult | None
    between_nodes: NodeTraffic | None
    graph: CoactivationGraph | None
    missing: dict[str, str]


def study_placement(
    trace: Trace, topology: Topology, *, batch: int | None = None, seed: int = 0
) -> PlacementStudy:
    """Place `trace` on `topology`, before and after, over redundancy, over time, between nodes.

    Raises InputError where it cannot be placed at all.
    """
    placed = place_trace(trace, topology, seed=seed, batch=batch)
    placement = placed.plan.placement
    windows = split_windows(trace, seed=seed)
    linear, eplb = (
        solve_placement(windows.fit_load, topology, solver=name) for name in ("linear", "eplb")
    )
    missing: dict[str, str] = {}
    return PlacementStudy(
        placed=placed,
        name=trace.model.name,
        eplb_imbalance=eplb.imbalance(windows.test_load),
        load_before=linear.rank_load(windows.test_load),
        load_after=placement.rank_load(windows.test_load),
        sweep=_sweep(trace, topology, batch, seed, missing),
        online=_online(trace, topology, batch, seed, missing),
        between_nodes=_between_nodes(trace, placement, windows.test, missing),
        graph=_graph(trace, placed, seed, missing),
        missing=missing,
    )


def _sweep(
    trace: Trace, topology: Topology, batch: int | None, seed: int, missing: dict[str, str]
) -> RedundancySweep | None:
    counts = [
        count
        for each in _LAYOUTS
        if (count := _redundant(trace.experts_per_layer, topology.gpus, each)) is not None
    ]
    try:
        return sweep_redundancy(
            trace, topology.gpus, counts, nodes=topology.nodes, batch=batch, seed=seed, resamples=20
        )
    except MoeprofError as error:
        missing["sweep"] = str(error)
        return None


def _redundant(experts: int, gpus: int, each: int) -> int | None:
    """Redundant slots where GPUs have `each` more than they need; None where experts lack room."""
    least = -(-experts // gpus) * gpus
    count = least - experts + each * gpus
    return count if count <= experts * (gpus - 1) else None


def _online(
    trace: Trace, topology: Topology, batch: int | None, seed: int, missing: dict[str, str]
) -> OnlineResult | None:
    try:
        steps = len(np.unique(trace.step)) if batch is None else None
        interval = _interval(trace, batch) if steps is None else max(1, steps // (_REBALANCES + 1))
        return place_online(
            trace, topology, interval=interval, batch=batch, max_imbalance=1.05, seed=seed
        )
    except MoeprofError as error:
        missing["online"] = str(error)
        return None


def _interval(trace: Trace, batch: int | None) -> int:
    from moeprof.placement.replay import batched_steps, judged_requests

    steps = batched_steps(trace, judged_requests(trace), batch or 1)
    return max(1, (len(steps.starts) - 1) // (_REBALANCES + 1))


def _between_nodes(
    trace: Trace,
    placement: Placement,
    window: NDArray[np.bool_] | None,
    missing: dict[str, str],
) -> NodeTraffic | None:
    if placement.topology.nodes < 2:
        missing["between_nodes"] = "all GPUs are in one node"
        return None
    try:
        return node_traffic(trace, placement, window=window)
    except MoeprofError as error:
        missing["between_nodes"] = str(error)
        return None


def _graph(
    trace: Trace, placed: PlacementResult, seed: int, missing: dict[str, str]
) -> CoactivationGraph | None:
    """Of the layer in the middle."""
    try:
        return coactivation_graph(trace, placed.layers[len(placed.layers) // 2], seed=seed)
    except MoeprofError as error:
        missing["graph"] = str(error)
        return None
