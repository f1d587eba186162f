"""Where the experts of a recording would stand on the GPUs that are named, and what that buys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import MoeprofError, TraceError
from moeprof.hardware import Cluster
from moeprof.placement import Placement, Topology
from moeprof.placement.place import observe_window
from moeprof.placement.replay import PlacementJudgement, PlacementJudgements, judge_placements
from moeprof.placement.solve import solve_placement
from moeprof.placement.windows import split_windows
from moeprof.result import NOT_JSON, Result
from moeprof.trace import Trace

BATCH = 32  # requests at a time, where the recording tells them apart
_TOKENS = 100_000  # judged at most: more take longer than a page should


@dataclass(frozen=True)
class PlacementComparison(Result):
    """Maps fitted on the earlier half of the tokens, judged on the later one.

    `placement` is the map called placed, `window` [tokens] what it is judged on, None: all.
    """

    judged: PlacementJudgements
    redundant: Mapping[str, int]  # by map
    redundant_bytes_per_gpu: Mapping[str, float | None]
    precision: str
    placement: Placement | None = field(default=None, repr=False, metadata=NOT_JSON)
    window: NDArray[np.bool_] | None = field(default=None, repr=False, metadata=NOT_JSON)

    def of(self, name: str) -> PlacementJudgement:
        """The verdict on the map called `name`."""
        return next(one for one in self.judged.judgements if one.name == name)


ORDER, EPLB, PLACED, SPARE = "in order of id", "EPLB", "placed", "placed, one slot more a GPU"


def compared_placements(
    trace: Trace, cluster: Cluster, precision: str, missing: dict[str, str]
) -> PlacementComparison | None:
    """Experts in order, EPLB's map and ours on `cluster`; None, with the reason, where none is."""
    experts, gpus = trace.experts_per_layer, cluster.gpus
    if gpus < 2:
        missing["placement"] = "one GPU holds all experts: name two or more with --hardware"
        return None
    try:
        return _compared(trace, cluster, -(-experts // gpus) * gpus, precision)
    except MoeprofError as error:
        missing["placement"] = str(error)
        return None


def _compared(trace: Trace, cluster: Cluster, slots: int, precision: str) -> PlacementComparison:
    windows = split_windows(trace)
    seen = {} if windows.fit is None else observe_window(trace, windows.fit)  # once for all maps

    def fit(topology: Topology, solver: str = "best") -> Placement:
        return solve_placement(windows.fit_load, topology, solver=solver, **seen)

    few, more = (
        Topology.even(cluster.gpus, count, cluster.nodes) for count in (slots, slots + cluster.gpus)
    )
    maps = {
        ORDER: fit(few, solver="linear"),
        EPLB: fit(few, solver="eplb"),
        PLACED: fit(few),
        SPARE: fit(more),
    }
    window = windows.test
    if window is not None and window.sum() > _TOKENS:
        window = window & (window.cumsum() <= _TOKENS)
    return PlacementComparison(
        judged=_judged(trace, maps, window),
        redundant={n: m.topology.slots_in_all - m.experts for n, m in maps.items()},
        redundant_bytes_per_gpu={n: _bytes(trace, m, precision) for n, m in maps.items()},
        precision=precision,
        placement=maps[PLACED],
        window=window,
    )


def _judged(
    trace: Trace, maps: Mapping[str, Placement], window: NDArray[np.bool_] | None
) -> PlacementJudgements:
    """With requests batched anew where the recording tells them apart, else as recorded."""
    try:
        return judge_placements(trace, maps, window=window, batch=BATCH, resamples=20)
    except TraceError:  # requests or phases are not told apart
        return judge_placements(trace, maps, window=window)


def _bytes(trace: Trace, placement: Placement, precision: str) -> float | None:
    if not trace.model.tensors:
        return None
    spare = placement.topology.slots_in_all - placement.experts
    size = trace.model.bytes_per_expert(precision)
    return spare * placement.layers * size / placement.topology.gpus
