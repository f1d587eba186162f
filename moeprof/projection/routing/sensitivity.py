"""What a projection hangs on routing: the same step under even routing, as recorded, and placed.

Skew is not always a cost. A small step waits for weights, and skewed tokens read fewer of them; a
large one waits for the rank with most assignments, which skew makes busier and a placement less so.
Which of the two wins, and where, is what the rows show. Experts are placed by the part of the
recording that is not judged, so the placed column is what the map buys on other tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.placement import Placement, Topology
from moeprof.placement.fitting import fit_placement
from moeprof.placement.windows import SplitBy, Windows, split_windows
from moeprof.projection.routing.power_law import PowerLawRouting
from moeprof.projection.routing.recorded import TraceRouting
from moeprof.projection.routing.step_load import RoutingModel, StepLoad
from moeprof.projection.routing.transfer import check_routing, routing_for
from moeprof.projection.routing.uniform import UniformRouting, shape_of
from moeprof.quantity import Provenance, Quantity
from moeprof.result import NOT_JSON, Result
from moeprof.trace import Phase, Trace

MoeSeconds = Callable[[StepLoad], Quantity]

STEP_TOKENS = (1, 4, 16, 64, 256, 1024, 4096)


@dataclass(frozen=True)
class RoutingCell(Result):
    """One step under one routing; means over layers, where a layer waits for its busiest rank."""

    routing: str
    distinct: float  # experts that the step uses, of all ranks
    most_distinct: float  # that the rank reads which reads most
    busiest_assignments: float
    imbalance: float  # busiest_assignments over the mean rank's
    moe_ms: Quantity | None  # of all MoE layers; None where nothing turns loads into seconds
    provenance: Provenance  # of the load


@dataclass(frozen=True)
class SensitivityRow(Result):
    """One number of tokens; cells in the order of `RoutingSensitivity.routings`."""

    tokens: int
    mean_assignments: float  # of a rank
    cells: list[RoutingCell]


@dataclass(frozen=True)
class RoutingSensitivity(Result):
    """Rows by tokens of a step. `transfer` names how a recording of another model was used."""

    model: str
    trace_model: str
    transfer: str | None
    phase: str
    ranks: int
    redundant: int  # slots of a layer beyond one for each expert, of the placed routing
    layers: int
    experts: int
    top_k: int
    consecutive: int  # tokens of each request in a decode step
    routings: list[str]
    rows: list[SensitivityRow]
    judged_tokens: int  # of the recording
    judged_requests: int
    label: str | None  # of the judged requests; None: all
    split: str
    placement: Placement | None = field(repr=False, metadata=NOT_JSON)  # None on one rank


def study_routing(
    trace: Trace,
    model: MoEModel | None = None,
    *,
    ranks: int,
    tokens: Sequence[int] = STEP_TOKENS,
    phase: Phase = Phase.DECODE,
    consecutive: int = 1,
    label: str | None = None,
    redundant: int | None = None,
    transfer: str | None = None,
    alpha: float | None = None,
    solver: str = "best",
    seconds: MoeSeconds | None = None,
    seed: int = 0,
) -> RoutingSensitivity:
    """Steps of `tokens` of `model` (None: the recorded one) on `ranks` that share the experts.

    With `label`, requests of that label alone are judged, on the map for all of them.
    `redundant` slots a layer are for replicas, None: as few as let ranks hold equally many.
    `alpha` adds a column for AIConfigurator's power law. `seconds` turns loads into what all MoE
    layers take, as `moe_seconds` does.

    Raises InputError where the recording is of another model and `transfer` does not say how it is
    used, where ranks and slots do not go together, on steps without tokens and unknown labels.
    """
    if not tokens or min(tokens) < 1:
        raise InputError(f"steps of {list(tokens)} tokens: numbers from 1 are needed")
    model = trace.model if model is None else model
    carried = check_routing(trace, model, transfer)
    windows, split = judged_windows(trace, seed)
    keep = _of_label(trace, windows.test, label)
    placement = None
    if ranks > 1:
        topology = Topology.even(ranks, _slots(trace.experts_per_layer, ranks, redundant))
        placement = fit_placement(trace, windows, topology, solver=solver, seed=seed)
    routings: list[RoutingModel] = [UniformRouting(shape_of(model))]
    routings += [] if alpha is None else [PowerLawRouting(shape_of(model), alpha)]
    for chosen in [None] if placement is None else [None, placement]:
        recorded = TraceRouting(trace, chosen, keep=keep, seed=seed)
        routings.append(routing_for(recorded, trace, model, transfer))

    def loads(count: int) -> list[StepLoad]:
        return [
            routing.load(count, ranks, phase=phase, consecutive=consecutive) for routing in routings
        ]

    names = [routing.name for routing in routings]
    judged = trace.request[keep]
    return RoutingSensitivity(
        model=model.name,
        trace_model=trace.model.name,
        transfer=transfer if carried else None,
        phase=phase.name.lower(),
        ranks=ranks,
        redundant=0 if placement is None else placement.topology.slots_in_all - placement.experts,
        layers=len(model.moe_layers),
        experts=model.experts,
        top_k=model.top_k,
        consecutive=consecutive,
        routings=names,
        rows=[_row(names, loads(count), seconds) for count in tokens],
        judged_tokens=len(judged),
        judged_requests=len(np.unique(judged)),
        label=label,
        split=split.value,
        placement=placement,
    )


def judged_windows(trace: Trace, seed: int) -> tuple[Windows, SplitBy]:
    """Two halves of the requests; of time where there is one request alone."""
    split = SplitBy.REQUEST if len(np.unique(trace.request)) > 1 else SplitBy.TIME
    return split_windows(trace, by=split, seed=seed), split


def _of_label(
    trace: Trace, judged: NDArray[np.bool_] | None, label: str | None
) -> NDArray[np.bool_]:
    """[tokens] which are judged. Raises InputError for a label that no request has."""
    keep = np.ones(trace.tokens, bool) if judged is None else judged
    if label is None:
        return keep
    if label not in trace.labels:
        known = ", ".join(trace.labels) or "none"
        raise InputError(f"{trace}: no request is labelled '{label}'; labels are {known}")
    chosen: NDArray[np.bool_] = trace.label_code == trace.labels.index(label)
    return keep & chosen


def _slots(experts: int, ranks: int, redundant: int | None) -> int:
    if redundant is None:
        return -(-experts // ranks) * ranks
    if redundant < 0:
        raise InputError(f"{redundant} redundant experts: 0 or more")
    return experts + redundant


def _row(names: list[str], loads: list[StepLoad], seconds: MoeSeconds | None) -> SensitivityRow:
    cells = [_cell(name, load, seconds) for name, load in zip(names, loads, strict=True)]
    return SensitivityRow(round(loads[0].tokens), loads[0].mean_assignments, cells)


def _cell(name: str, load: StepLoad, seconds: MoeSeconds | None) -> RoutingCell:
    return RoutingCell(
        routing=name,
        distinct=_mean(load.distinct),
        most_distinct=_mean(load.most_distinct),
        busiest_assignments=_mean(load.busiest_assignments),
        imbalance=load.imbalance,
        moe_ms=None if seconds is None else _in_ms(seconds(load)),
        provenance=load.provenance,
    )


def _in_ms(seconds: Quantity) -> Quantity:
    low, high = (None if end is None else 1000 * end for end in (seconds.low, seconds.high))
    return replace(seconds, value=1000 * seconds.value, unit="ms", low=low, high=high)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0
