"""Solve on one window, judge on another: what `moeprof place` shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moeprof.analysis.counting import count_assignments
from moeprof.errors import InputError
from moeprof.placement.bounds import lower_bound
from moeprof.placement.placement import Placement
from moeprof.placement.plan import Plan
from moeprof.placement.replay import PlacementJudgement, judge_placements
from moeprof.placement.solve import solve_placement
from moeprof.placement.topology import Topology
from moeprof.placement.traffic import COMBINE_BYTES, DISPATCH_BYTES, Traffic, measure_traffic
from moeprof.placement.windows import SplitBy, Windows, split_windows
from moeprof.result import NOT_JSON, Result
from moeprof.trace import Trace

ROUTED = 16_384  # tokens for solvers of traffic, which thin them further
WINDOWS = 16  # that the window of the fit is divided into, for solvers that even them out


@dataclass(frozen=True)
class PlacementResult(Result):
    """A solved placement and what it comes to, on the window of the fit and on the later one.

    Imbalance is the busiest GPU's load over the mean, of a window's sum, mean over layers; 1 is
    perfect. What needs tokens is None where the load was counts: the bytes, the steps.
    """

    solver: str
    imbalance_fit: float
    imbalance_test: float
    lower_bound: float  # that no map of the fit's load is below
    imbalance_test_linear: float  # of experts in order of id, on the later window
    duplicates: int  # slots that hold an expert which their GPU holds already
    moved_slots: int  # experts to copy to GPUs that do not hold them
    moved_from: str  # the map that moves are counted from
    bytes_between_gpus_per_token: float | None  # later window, all layers, there and back
    bytes_between_nodes_per_token: float | None
    traffic: Traffic | None  # what the bytes assume
    steps: PlacementJudgement | None  # the busiest rank of each step of the later window
    redundant_bytes: int | None  # memory that replicas take, all GPUs
    gpus: int
    nodes: int
    slots: tuple[int, ...]  # by GPU
    redundant: int  # slots beyond one an expert
    experts: int
    layers: tuple[int, ...]  # native index of each row of the map
    split: str  # how the windows were divided; none: one load for both
    imbalance_test_by_layer: list[float]
    physical_to_logical_map: NDArray[np.int64] = field(repr=False)  # [layers, slots]
    rank_load_test: NDArray[np.float64] = field(repr=False)  # [layers, gpus]
    plan: Plan = field(repr=False, metadata=NOT_JSON)


def place_trace(
    trace: Trace,
    topology: Topology,
    *,
    solver: str = "best",
    split: SplitBy | str = SplitBy.TIME,
    fit: float = 0.5,
    seed: int = 0,
    before: Placement | None = None,
    batch: int | None = None,
    precision: str = "bf16",
    dispatch_bytes: float = DISPATCH_BYTES,
    combine_bytes: float = COMBINE_BYTES,
    **solving: Any,
) -> PlacementResult:
    """Place the experts of `trace` by its window `fit`, and judge the map on the other window.

    With `batch`, the later window's requests run that many at a time. `precision` is the format of
    the weights whose memory is counted. The rest, and more, is as `solve_placement` and
    `measure_traffic` say.

    Raises InputError and InfeasibleError as they do, TraceError on a damaged recording.
    """
    windows = split_windows(trace, by=split, fit=fit, seed=seed)
    placement = solve_placement(
        windows.fit_load,
        topology,
        solver=solver,
        seed=seed,
        before=before,
        expert_bytes=_expert_bytes(trace, precision),
        **({} if windows.fit is None else observe_window(trace, windows.fit)),
        **solving,
    )
    traffic = judged = None
    if windows.test is not None:
        traffic = measure_traffic(
            trace,
            placement,
            window=windows.test,
            dispatch_bytes=dispatch_bytes,
            combine_bytes=combine_bytes,
        )
        judged = judge_placements(
            trace, {solver: placement}, window=windows.test, batch=batch, seed=seed
        ).judgements[0]
    plan = Plan(placement, tuple(trace.layers), solver, trace.model.name, windows.fit_load)
    return _result(plan, windows, SplitBy(split), before, traffic, judged)


def place_load(
    load: ArrayLike,
    topology: Topology,
    *,
    solver: str = "best",
    before: Placement | None = None,
    **solving: Any,
) -> PlacementResult:
    """Place experts by `load` [layers, experts], and judge the map on the same load.

    The rest, and what is raised, is as `solve_placement` says.
    """
    placement = solve_placement(load, topology, solver=solver, before=before, **solving)
    counts = np.asarray(load)
    whole = np.rint(counts).astype(np.int64)
    plan = Plan(placement, tuple(range(placement.layers)), solver, load=whole)
    return _result(plan, Windows(counts, counts, None, None), None, before, None, None)


def _result(
    plan: Plan,
    windows: Windows,
    split: SplitBy | None,
    before: Placement | None,
    traffic: Traffic | None,
    judged: PlacementJudgement | None,
) -> PlacementResult:
    placement, topology = plan.placement, plan.placement.topology
    linear = solve_placement(windows.fit_load, topology, solver="linear")
    return PlacementResult(
        solver=plan.solver,
        imbalance_fit=placement.imbalance(windows.fit_load),
        imbalance_test=placement.imbalance(windows.test_load),
        lower_bound=lower_bound(windows.fit_load, topology),
        imbalance_test_linear=linear.imbalance(windows.test_load),
        duplicates=placement.duplicates,
        moved_slots=placement.moved_slots(linear if before is None else before),
        moved_from="experts in order of id" if before is None else "the map before",
        bytes_between_gpus_per_token=(
            None if traffic is None else traffic.bytes_between_gpus_per_token
        ),
        bytes_between_nodes_per_token=(
            None if traffic is None else traffic.bytes_between_nodes_per_token
        ),
        traffic=traffic,
        steps=judged,
        redundant_bytes=placement.redundant_bytes,
        gpus=topology.gpus,
        nodes=topology.nodes,
        slots=topology.slots,
        redundant=topology.slots_in_all - placement.experts,
        experts=placement.experts,
        layers=plan.layers,
        split="none" if split is None else split.value,
        imbalance_test_by_layer=placement.imbalance_by_layer(windows.test_load).tolist(),
        physical_to_logical_map=placement.physical_to_logical_map,
        rank_load_test=placement.rank_load(windows.test_load),
        plan=plan,
    )


def _expert_bytes(trace: Trace, precision: str) -> int | None:
    """Of the largest expert in a layer; None where neither model nor recording says."""
    if trace.model.tensors:
        return trace.model.bytes_per_expert(precision)
    return max((trace.manifest.expert_bytes or {}).values(), default=None)


def observe_window(trace: Trace, window: NDArray[np.bool_]) -> dict[str, Any]:
    """What `solve_placement` may learn of the tokens of `window` [tokens] beside their sum.

    Its arguments `windows`, the loads of at most `WINDOWS` parts of as many tokens, and `routing`,
    of tokens evenly thinned to `ROUTED`.
    """
    rows = np.flatnonzero(window)
    parts = min(WINDOWS, len(rows))
    sample = np.zeros_like(window)
    sample[rows[:: -(-len(rows) // ROUTED) or 1]] = True
    part = np.full(trace.tokens, parts, np.int32)
    part[rows] = np.arange(len(rows)) * parts // len(rows)
    return {
        "routing": [trace.experts(n)[sample[trace.recorded(n)]] for n in trace.layers],
        "windows": count_assignments(trace, part, parts + 1)[:parts],
    }


def read_load(path: str | Path) -> NDArray[np.float64]:
    """The load [layers, experts] in the NumPy file at `path`. Raises InputError for another."""
    try:
        loaded = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except (ValueError, EOFError):
        raise InputError(f"{path} is not a NumPy file (.npy) of numbers") from None
    if not isinstance(loaded, np.ndarray) or loaded.dtype.kind not in "iuf":
        raise InputError(f"{path} does not hold one array of numbers, [layers, experts]")
    return loaded.astype(np.float64)
