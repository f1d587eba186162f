"""A plan's first steps on a clock: what each part of the machine does when."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.offload.rates import Speeds
from moeprof.offload.results import OffloadPlan
from moeprof.offload.stepping import time_events
from moeprof.offload.timing import LayerTimes, copy_seconds, step_seconds

TRACKS = ("host", "GPU", "link", "CPU", "drive")
# Kinds of work in the order of `LANES`, then the rest; and the track of each.
KINDS = (
    "experts",
    "copies",
    "CPU experts",
    "reads",
    "copied experts",
    "attention",
    "launch",
    "step",
)
_TRACK_OF = np.array([1, 2, 3, 4, 1, 1, 1, 0])
_ATTENTION, _LAUNCH, _STEP = 5, 6, 7

# A slice of work. `layer` is a MoE layer's ordinal, -1 for the step's own work; the counts are of
# the event that the slice is of.
SLICE = np.dtype(
    [("track", "i8"), ("kind", "i8"), ("start_s", "f8"), ("seconds", "f8"), ("step", "i8")]
    + [(name, "i8") for name in ("layer", "needed", "missed", "copied", "stored")]
)


def draw_timeline(plan: OffloadPlan, steps: int = 4) -> NDArray[np.void]:
    """[slices] of `SLICE` in order of start: the first `steps` of the plan's best row.

    Rates are in the middle of their bands. What crosses the link behind the CPU is not drawn, and
    weights outside of experts are spread evenly over the MoE layers. Raises InputError for less
    than one step.
    """
    if steps < 1:
        raise InputError(f"steps {steps}: at least 1 is needed")
    speeds, traffic = plan.rates.at("middle"), plan.traffic
    times = time_events(traffic, plan.work, speeds, plan.service, steps)
    layers, steps = times.seconds.shape
    gpu, overhead = step_seconds(plan.work, speeds, traffic.step_tokens[:steps])
    between = np.broadcast_to((gpu + overhead - speeds.step_s) / layers, times.seconds.shape)
    starts = _starts(times.seconds + between, speeds.step_s)
    event = {
        "needed": traffic.needed[:, :steps],
        "missed": traffic.missed[:, :steps],
        "copied": times.copied,
        "stored": traffic.stored[:, :steps],
    }
    begun = starts + between + speeds.kernel_s
    lanes = _lane_starts(plan, speeds, times, begun, event["stored"] > 0)
    event |= dict(zip(("layer", "step"), np.indices(times.seconds.shape), strict=True))
    parts = [_drawn(kind, lanes[kind], took, event) for kind, took in enumerate(times.lanes)]
    parts.append(_drawn(_ATTENTION, starts, between, event))
    launch = np.full(times.seconds.shape, speeds.kernel_s)
    parts.append(_drawn(_LAUNCH, starts + between, launch, event))
    own = {"step": np.arange(steps), "layer": np.full(steps, -1)}
    parts.append(_drawn(_STEP, starts[0] - speeds.step_s, np.full(steps, speeds.step_s), own))
    slices = np.concatenate(parts)
    return slices[np.argsort(slices["start_s"], kind="stable")]


def _starts(took: NDArray[np.float64], step_s: float) -> NDArray[np.float64]:
    """[layers, steps] when each layer begins, if it takes `took` and a step `step_s` before."""
    within = np.cumsum(took, axis=0) - took
    whole = took.sum(axis=0) + step_s
    starts: NDArray[np.float64] = within + np.cumsum(whole) - whole + step_s
    return starts


def _lane_starts(
    plan: OffloadPlan,
    speeds: Speeds,
    times: LayerTimes,
    begun: NDArray[np.float64],
    stored: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """[lanes, layers, steps] when each begins: copies and the CPU end with what they wait for."""
    held, link, cpu, drive, copied = times.lanes
    if not plan.service.overlap:
        in_turn = np.cumsum(np.stack([begun, held, drive, link, copied]), axis=0)
        ordered: NDArray[np.float64] = in_turn[np.array([0, 2, 4, 1, 3])]
        return ordered
    copies = times.copied > 0
    one_copy = copy_seconds(plan.work, speeds, plan.service.apart)
    on_cpu = 0.0 if speeds.cpu is None else plan.work.expert_bytes / speeds.cpu
    arrived = np.maximum(link, np.where(stored & copies, drive + one_copy, 0))
    computed = np.maximum(cpu, np.where(stored & ~copies, drive + on_cpu, 0))
    waits = [0 * held, arrived - link, computed - cpu, 0 * held, np.maximum(held, arrived)]
    starts: NDArray[np.float64] = begun + np.stack(waits)
    return starts


def _drawn(
    kind: int,
    start: NDArray[np.float64],
    seconds: NDArray[np.float64],
    columns: dict[str, NDArray[Any]],
) -> NDArray[np.void]:
    """Slices of one kind, those that take time."""
    there = seconds > 0
    slices = np.zeros(int(there.sum()), SLICE)
    slices["kind"], slices["track"] = kind, _TRACK_OF[kind]
    slices["start_s"], slices["seconds"] = start[there], seconds[there]
    for name, column in columns.items():
        slices[name] = column[there]
    return slices
