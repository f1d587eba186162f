"""How many redundant experts, and what do they cost: one placement a number, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.placement.bounds import lower_bound
from moeprof.placement.fitting import fit_placement
from moeprof.placement.placement import Placement
from moeprof.placement.replay import Interval, PlacementJudgement, Share, judge_placements
from moeprof.placement.topology import Topology
from moeprof.placement.windows import SplitBy, split_windows
from moeprof.quantity import Quantity
from moeprof.result import NOT_JSON, Result
from moeprof.trace import Phase, Trace

PRECISIONS = ("bf16", "fp8", "nvfp4")


@dataclass(frozen=True)
class SweepRow(Result):
    """One number of redundant experts. Loads are in assignments, of the window that is judged."""

    redundant: int  # slots of a layer beyond one for each expert
    slots_per_gpu: int
    imbalance_fit: float
    lower_bound: float  # that no map of the fit's load is below
    imbalance: Interval
    step_imbalance: Interval
    busiest_mean: Interval
    busiest_p99: Interval
    step_imbalance_less_first: Interval  # than of the first row, on the same requests
    duplicates: int
    redundant_bytes_per_gpu: dict[str, float]  # by weight format; empty where sizes are not known
    placement: Placement = field(repr=False, metadata=NOT_JSON)
    tok_s: Quantity | None = None  # output tokens/s, where a projection was asked for
    fits: bool | None = None  # in the GPUs' memory, there


@dataclass(frozen=True)
class RedundancySweep(Result):
    """Rows in the order that was asked for."""

    rows: list[SweepRow]
    solver: str
    gpus: int
    nodes: int
    experts: int
    layers: int
    split: SplitBy
    batch: int | None
    even_mean: float  # busiest rank of a step, were every layer even
    steps: int
    tokens: int
    resamples: int
    share: Share
    phase: str
    judged: NDArray[np.bool_] = field(repr=False, metadata=NOT_JSON)  # [tokens] of the trace


def sweep_redundancy(
    trace: Trace,
    gpus: int,
    redundant: Sequence[int],
    *,
    nodes: int = 1,
    solver: str = "best",
    split: SplitBy | str = SplitBy.TIME,
    fit: float = 0.5,
    batch: int | None = None,
    phase: Phase | None = None,
    share: Share | str = Share.EQUAL,
    precisions: Sequence[str] = PRECISIONS,
    resamples: int = 100,
    seed: int = 0,
    **solving: Any,
) -> RedundancySweep:
    """Solve on one window of `trace` for every number in `redundant`, judge on the other.

    Raises InputError where slots do not divide over `gpus`, for numbers below 0 or twice, and as
    `split_windows`, `fit_placement` and `judge_placements` do.
    """
    experts = trace.experts_per_layer
    if not redundant or min(redundant) < 0 or len(set(redundant)) < len(redundant):
        raise InputError(f"redundant {list(redundant)}: numbers from 0, each once")
    windows = split_windows(trace, by=split, fit=fit, seed=seed)
    if windows.test is None:
        raise InputError(f"{trace}: holds counts only; the busiest rank of a step needs tokens")
    maps = {
        str(count): fit_placement(
            trace,
            windows,
            Topology.even(gpus, experts + count, nodes),
            solver=solver,
            seed=seed,
            **solving,
        )
        for count in redundant
    }
    judged = judge_placements(
        trace,
        maps,
        window=windows.test,
        batch=batch,
        phase=phase,
        share=share,
        resamples=resamples,
        seed=seed,
    )
    sizes = _sizes(trace, precisions)
    rows = []
    for verdict, count in zip(judged.judgements, redundant, strict=True):
        placement = maps[str(count)]
        rows.append(
            SweepRow(
                redundant=count,
                slots_per_gpu=placement.topology.slots[0],
                imbalance_fit=placement.imbalance(windows.fit_load),
                lower_bound=lower_bound(windows.fit_load, placement.topology),
                duplicates=placement.duplicates,
                redundant_bytes_per_gpu={
                    name: size * count * placement.layers / gpus for name, size in sizes.items()
                },
                placement=placement,
                **_figures(verdict),
            )
        )
    return RedundancySweep(
        rows=rows,
        solver=solver,
        gpus=gpus,
        nodes=nodes,
        experts=experts,
        layers=len(trace.layers),
        split=SplitBy(split),
        batch=batch,
        even_mean=judged.even_mean,
        steps=judged.steps,
        tokens=judged.tokens,
        resamples=judged.resamples,
        share=judged.share,
        phase=judged.phase,
        judged=windows.test,
    )


def _figures(verdict: PlacementJudgement) -> dict[str, Any]:
    names = ("imbalance", "step_imbalance", "busiest_mean", "busiest_p99")
    return {name: getattr(verdict, name) for name in (*names, "step_imbalance_less_first")}


def _sizes(trace: Trace, precisions: Sequence[str]) -> Mapping[str, int]:
    """Bytes of one expert of a layer by format; of the recording's own where it says no more."""
    if trace.model.tensors:
        return {name: trace.model.bytes_per_expert(name) for name in precisions}
    own = trace.manifest.expert_bytes or {}
    return {"as recorded": max(own.values())} if own else {}
