"""Speed of runs by the law of `moeprof.offload`, with constants that all of them share.

A source leaves inputs open (`Inputs`); the law is asked at the middle of each and at its ends.
Runs that serve misses alike are timed together: `time_layers` broadcasts over a row a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.offload.rates import Speeds, constant
from moeprof.offload.timing import time_layers
from moeprof.offload.work import DecodeWork

from .residency import (
    IMPUTED_SHARE,
    LRU_LOCALITY,
    POPULARITY,
    hit_ratio,
    moved_bits,
    resident_share,
)
from .runs import Band, Run

Column = NDArray[np.float64]  # [runs, 1]

# Of datasheet peaks, what benchmarks reach (hardware/profiles): STREAM on EPYC, copies by PCIe.
STREAM_OF_PEAK = 0.82
COPY_OF_PEAK = 0.79
RUNTIMES = ("graph", "native", "eager")
# (Tokens verified, tokens kept) a step. SP-MoE and what it runs beside: one drafted, 97 % kept.
# MoE-SpeQ says over 90 % and not how many; three are taken.
ONE_DRAFTED, THREE_DRAFTED, NONE_DRAFTED = (2, 1.97), (4, 3.4), (1, 1.0)


class Constants(NamedTuple):
    """What the audit fits. The law's other constants are those of `rates.toml`."""

    cpu_efficiency: float  # of STREAM bandwidth, by experts on the CPU
    graph_layer_s: float  # launches of a layer from a CUDA graph
    layer_s: float  # from compiled code, one by one
    eager_layer_s: float  # from Python
    cpu_layer_s: float  # handing a layer to the CPU and back


class Inputs(NamedTuple):
    """What a source leaves open, of one run."""

    host: Band  # bytes/s, peak
    link: Band  # bytes/s, peak
    of_bound: Band  # share of an imputed budget
    lru: Band
    popular: Band


class Case(NamedTuple):
    """One run at one choice of its inputs: all that the law needs besides constants."""

    expert_bytes: float
    dense_bytes: float
    layers: int
    moe_layers: int
    held: int  # experts of a layer, where it is copied whole
    needed: int  # by a step
    tokens: float  # of a step
    resident: float
    hit_ratio: float
    hbm: float  # peak; efficiencies are constants
    link: float  # of a benchmark's copy
    cpu: float  # of STREAM
    kernel_measured: bool  # then `cpu` is what the source measured
    runtime: int  # of RUNTIMES


class Cases(NamedTuple):
    """Columns of `Case`s that are served alike."""

    serve: str
    overlap: bool
    columns: Case  # of [runs, 1]
    rows: NDArray[np.int64]  # of the runs that were asked for

    @property
    def work(self) -> DecodeWork:
        """Of all runs at once: the law broadcasts, but a single step is what DecodeWork checks."""
        work = DecodeWork(layers=1, moe_layers=1, expert_bytes=1.0, matrices=1)
        object.__setattr__(work, "expert_bytes", self.columns.expert_bytes)
        return work


def inputs_of(run: Run) -> Inputs:
    """The bands of one run's inputs."""
    machine = run.machine
    return Inputs(machine.host, machine.link, IMPUTED_SHARE, LRU_LOCALITY, POPULARITY)


def case_of(run: Run, inputs: Sequence[float]) -> Case:
    """A run with each of its `Inputs` at one value."""
    host, link, of_bound, lru, popular = inputs
    shape, machine = run.shape, run.machine
    share = resident_share(run, of_bound)
    verified, kept = _drafted(run)
    return Case(
        expert_bytes=shape.expert_parameters * moved_bits(run) / 8,
        dense_bytes=(shape.token_parameters + shape.head_parameters) * run.dense_bits / 8,
        layers=shape.layers,
        moe_layers=shape.moe_layers,
        held=shape.experts,
        needed=round(shape.experts * (1 - (1 - shape.top_k / shape.experts) ** verified)),
        tokens=kept,
        resident=share,
        hit_ratio=hit_ratio(run, share, lru, popular),
        hbm=machine.gpu_rate,
        link=link * COPY_OF_PEAK,
        cpu=machine.kernel or host * STREAM_OF_PEAK,
        kernel_measured=machine.kernel is not None,
        runtime=RUNTIMES.index(run.engine.runtime),
    )


def _drafted(run: Run) -> tuple[int, float]:
    if not run.speculative:
        return NONE_DRAFTED
    return THREE_DRAFTED if run.engine.name == "moespeq" else ONE_DRAFTED


def gather(runs: Sequence[Run], cases: Sequence[Case]) -> list[Cases]:
    """Cases by how their engines serve misses."""
    served = [(run.engine.serve, run.engine.overlap) for run in runs]
    found = []
    for serve, overlap in dict.fromkeys(served):
        rows = np.array([i for i, kind in enumerate(served) if kind == (serve, overlap)])
        columns = zip(*(cases[i] for i in rows), strict=True)
        found.append(Cases(serve, overlap, Case(*(np.array(c)[:, None] for c in columns)), rows))
    return found


def speeds_of(groups: Sequence[Cases], constants: Constants, end: str = "middle") -> Column:
    """tok/s [runs] in the order of the runs that were gathered.

    `end` is "slow", "middle" or "fast": where in their bands the constants stand that are not
    fitted here.
    """
    found = np.empty(sum(len(group.rows) for group in groups))
    for group in groups:
        ways = {"layers": _split_layers, "stream": _streamed}
        seconds = ways.get(group.serve, _experts_apart)(
            group, _speeds(group.columns, constants, end)
        )
        found[group.rows] = (group.columns.tokens / seconds)[:, 0]
    return found


def _speeds(case: Case, constants: Constants, end: str) -> Speeds:
    """Columns [runs, 1] of rates."""
    read = case.cpu * constants.cpu_efficiency
    layer_s = np.array([constants.graph_layer_s, constants.layer_s, constants.eager_layer_s])
    return Speeds(
        hbm=case.hbm * stated("hbm_efficiency", end, rate=True),
        link=case.link * stated("link_efficiency", end, rate=True),
        cpu=np.where(case.kernel_measured, case.cpu, read),
        drive=None,
        copy_latency_s=stated("copy_latency_s", end),
        drive_latency_s=0.0,
        drive_queue_depth=1.0,
        kernel_s=stated("kernel_s", end),
        layer_s=layer_s[case.runtime],
        cpu_layer_s=constants.cpu_layer_s,
        step_s=stated("step_s", end),
    )


@cache
def stated(name: str, end: str, rate: bool = False) -> float:
    """A constant of `rates.toml` at one end of its band; a `rate` is slow where it is low."""
    found = constant(name)
    assert found.low is not None and found.high is not None
    slow, fast = (found.low, found.high) if rate else (found.high, found.low)
    return {"slow": slow, "middle": found.value, "fast": fast}[end]


def _outside(case: Case, speeds: Speeds) -> Column:
    return speeds.step_s + case.layers * speeds.layer_s


def _experts_apart(group: Cases, speeds: Speeds) -> Column:
    """Attention and all dense weights on the GPU; misses copied or computed by the CPU.

    Misses of an event fall independently: their number is binomial.
    """
    case = group.columns
    misses = np.arange(case.needed.max() + 1)
    events = np.minimum(misses, case.needed)  # beyond what is needed nothing is likely
    times = time_layers(
        case.needed, events, group.work, speeds, serve=group.serve, overlap=group.overlap
    )
    chances = _ways(tuple(case.needed[:, 0])) * np.where(
        misses <= case.needed,
        (1 - case.hit_ratio) ** events * case.hit_ratio ** (case.needed - events),
        0.0,
    )
    layers = (times.seconds * chances).sum(axis=1, keepdims=True)
    return case.moe_layers * layers + case.dense_bytes / speeds.hbm + _outside(case, speeds)


@cache
def _ways(needed: tuple[int, ...]) -> NDArray[np.float64]:
    """Binomial coefficients [runs, misses]."""
    return np.array([[comb(n, m) for m in range(max(needed) + 1)] for n in needed], float)


def _split_layers(group: Cases, speeds: Speeds) -> Column:
    """A share of the layers whole on the GPU, the others whole on the CPU."""
    case = group.columns
    read = case.dense_bytes + case.moe_layers * case.needed * case.expert_bytes
    by_byte = case.resident / speeds.hbm + (1 - case.resident) / speeds.cpu
    return read * by_byte + _outside(case, speeds)


def _streamed(group: Cases, speeds: Speeds) -> Column:
    """Layers that are not resident come over the link with all their experts."""
    case = group.columns
    weights = case.moe_layers * case.held * case.expert_bytes + case.dense_bytes
    read = case.moe_layers * case.needed * case.expert_bytes + case.dense_bytes
    copied = (1 - case.resident) * weights / speeds.link
    return copied + read / speeds.hbm + _outside(case, speeds)
