"""Seconds of a layer's routed experts: from the table where timed, from the law elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from moeprof.errors import InputError
from moeprof.hardware import HardwareProfile, load_profile
from moeprof.projection.moe_kernels.groups import (
    FEW_TOKENS,
    KernelGroup,
    Match,
    find_group,
    peaks_of,
)
from moeprof.projection.moe_kernels.law import Peaks, law_seconds, roofline_seconds
from moeprof.projection.moe_kernels.tables import (
    Group,
    as_collected,
    log_correction,
    timed_cells,
    timed_work,
)
from moeprof.projection.moe_kernels.timed_routings import RankDraw, draw_timed_rank
from moeprof.projection.moe_kernels.work import M3_SHAPE, ExpertShape, Floats, RankWork
from moeprof.quantity import Provenance, Quantity
from moeprof.result import Result


@dataclass(frozen=True)
class KernelSeconds(Result):
    """Seconds a layer and rank [points], the 80 % band around them, and where they come from."""

    seconds: Floats = field(hash=False)
    low: Floats = field(hash=False)
    high: Floats = field(hash=False)
    provenance: Provenance
    source: str

    @property
    def quantity(self) -> Quantity:
        """The one time there is. Raises InputError where there are several."""
        if self.seconds.size != 1:
            raise InputError(f"{self.seconds.size} kernel times are not one quantity")
        value, low, high = (float(x.item()) for x in (self.seconds, self.low, self.high))
        return Quantity(value, "s", self.provenance, low, high, self.source)


def moe_kernel_seconds(
    hardware: str | HardwareProfile,
    engine: str,
    dtype: str,
    shape: ExpertShape,
    tokens: ArrayLike,
    distinct: ArrayLike,
    load: ArrayLike,
    *,
    tp: int = 1,
    ep: int = 1,
    busiest: ArrayLike | None = None,
    kernel: str | None = None,
    as_timed: bool = False,
) -> KernelSeconds:
    """Seconds that the routed experts of one layer take on one rank.

    `tokens` are those of the step on all `ep` ranks together; `distinct` the experts of this rank
    with at least one row, `load` its (token, expert) pairs, `busiest` the rows of the fullest
    expert (None: a skewed routing); scalars or arrays that broadcast, averages allowed. `tp` cuts
    each expert's width, `ep` the number of experts a rank holds. `dtype` is a weight format
    (`bf16`, `nvfp4`, `fp8`, ...), `engine` vllm, sglang or trtllm; any other is `assumed` to be
    like the most similar one. `as_timed` is for comparison with the collector's tables: a
    kernel that is run again and again finds small weights in the cache, which no layer of a model
    does; so it allows times below the bound of bytes and FLOP.

    `measured` where the table has this system, engine, kernel, format, TP and EP at this shape;
    `fitted` by the law where only TP, EP or the shape differ; `assumed` elsewhere.
    Raises InputError on values no routing has, and on unknown hardware, format or kernel.
    """
    match, peaks = _prepared(hardware, engine, dtype, kernel)
    work = RankWork.of(shape, tokens, distinct, load, tp=tp, ep=ep, busiest=busiest)
    group = match.group
    if as_timed:
        work = as_collected(group.hardware, work, peaks.weight_bytes)
    seconds = law_seconds(match.tiles, group.constants, peaks, work)
    cell = None
    if match.provenance is Provenance.FITTED and shape == M3_SHAPE:
        cell = _cell_nodes(group, int(tp), int(ep))
    if cell is not None:
        seconds = seconds * np.exp(log_correction(*cell, work))
        match = replace(match, provenance=Provenance.MEASURED, band=group.table_band)
    if not as_timed:
        seconds = np.maximum(seconds, roofline_seconds(peaks, work))
    return _banded(seconds, work, match)


def timed_kernel_seconds(
    hardware: str | HardwareProfile,
    engine: str,
    dtype: str,
    routing: str,
    tokens: int,
    *,
    tp: int = 1,
    ep: int = 1,
    kernel: str | None = None,
    shape: ExpertShape = M3_SHAPE,
) -> KernelSeconds:
    """What aiconfigurator's collector would time for one row of its tables, named as they do.

    `routing` is `balanced` or `power_law_EXPONENT`; other parameters and errors are those of
    `moe_kernel_seconds`, which this asks for the mean rank that the routing gives.
    """
    drawn = _drawn(routing, tokens, ep, shape)
    return moe_kernel_seconds(
        hardware,
        engine,
        dtype,
        shape,
        tokens,
        drawn.distinct,
        drawn.load,
        tp=tp,
        ep=ep,
        busiest=drawn.busiest,
        kernel=kernel,
        as_timed=True,
    )


@lru_cache(maxsize=4096)
def _drawn(routing: str, tokens: int, ep: int, shape: ExpertShape) -> RankDraw:
    return draw_timed_rank(routing, tokens, ep, experts=shape.experts, top_k=shape.top_k)


@lru_cache(maxsize=256)
def _prepared(
    hardware: str | HardwareProfile, engine: str, dtype: str, kernel: str | None
) -> tuple[Match, Peaks]:
    profile = load_profile(hardware) if isinstance(hardware, str) else hardware
    return find_group(profile, engine, dtype, kernel), peaks_of(profile, dtype)


@lru_cache(maxsize=256)
def _cell_nodes(group: KernelGroup, tp: int, ep: int) -> tuple[RankWork, Floats] | None:
    """Work and logarithm of measured over law [tokens, routings] of one timed cell, if it is."""
    key: Group = (group.hardware, group.engine, group.kernel, group.dtype)
    cells = timed_cells()[key]
    own = np.flatnonzero((cells.tp == tp) & (cells.ep == ep))
    if not len(own):
        return None
    peaks = peaks_of(group.hardware, group.dtype)
    work = timed_work(key, cells.tp[own], cells.ep[own], peaks.weight_bytes).at(0)
    law = law_seconds(group.kernel, group.constants, peaks, work)
    return work, np.log(cells.seconds[own[0]] / law)


def _banded(seconds: Floats, work: RankWork, match: Match) -> KernelSeconds:
    few = work.tokens <= FEW_TOKENS
    low, high = (np.where(few, match.band.few[end], match.band.many[end]) for end in (0, 1))
    how = {
        Provenance.MEASURED: "timed, read by distinct experts and load",
        Provenance.FITTED: "law of the MoE kernel, fitted",
    }.get(match.provenance, "law of the MoE kernel, constants borrowed")
    source = f"{how}: {match.group.name}, aiconfigurator systems data 095f58a"
    return KernelSeconds(seconds, seconds * low, seconds * high, match.provenance, source)
