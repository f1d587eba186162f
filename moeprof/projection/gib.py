"""One GiB more on each GPU of a deployment whose experts are all there: as KV, or as replicas.

KV lets more requests run; a replica shares out what the busiest rank waits for, and is read too.
With experts below GPU memory `plan_offload` says what a GiB is worth.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moeprof.errors import InputError
from moeprof.hardware import Cluster, load_hardware
from moeprof.model import MoEModel, load_model
from moeprof.placement.sweep import RedundancySweep, sweep_redundancy
from moeprof.placement.windows import SplitBy
from moeprof.projection.placed_speed import project_sweep
from moeprof.projection.project import DeploymentProjection, project_deployment
from moeprof.projection.routing.gib import GibUse, GibValue, gib_use, whole_units
from moeprof.quantity import Quantity
from moeprof.trace import Trace


def project_gib(
    trace: Trace,
    hardware: Cluster | str,
    *,
    model: MoEModel | str | Path | None = None,
    concurrency: int,
    input_len: int,
    output_len: int,
    transfer: str | None = None,
    seed: int = 0,
    **deployment: Any,
) -> GibValue:
    """What one GiB more on each GPU adds, experts placed by half of `trace` and judged on the rest.

    Every GPU is a rank of the experts. The rest is as `project_deployment` and `project_sweep` say.
    Raises InputError as they do, on one GPU, and where more requests than are asked for do not fit
    now: the GiB is reckoned beside a deployment that fits.
    """
    served = trace.model if model is None else load_model(model)
    cluster = load_hardware(hardware)
    ranks, split = cluster.gpus, SplitBy.REQUEST
    if len(np.unique(trace.request)) < 2:
        split = SplitBy.TIME
    spare = -trace.experts_per_layer % ranks  # as few as let ranks hold equally many
    counts = (spare, spare + ranks)
    sweep = sweep_redundancy(
        trace, ranks, counts, split=split, batch=concurrency, resamples=0, seed=seed
    )
    lengths = {"input_len": input_len, "output_len": output_len} | deployment

    def speed(judged: RedundancySweep, requests: int) -> list[Quantity]:
        projected = project_sweep(
            judged,
            trace,
            cluster,
            model=served,
            concurrency=requests,
            transfer=transfer,
            **lengths,
        )
        return [row.tok_s for row in projected.rows if row.tok_s is not None]

    def memory(redundant: int) -> DeploymentProjection:
        scaled = round(redundant * served.experts / trace.experts_per_layer)
        return project_deployment(
            served, cluster, ep=ranks, concurrency=concurrency, redundant=scaled, **lengths
        )

    speeds, now = speed(sweep, concurrency), memory(spare)
    groups = int(deployment.get("dp", 1))
    kv_bytes = now.memory["kv"] / (concurrency / groups)
    more = whole_units(kv_bytes)
    _refuse_full(now, concurrency + more * groups)
    wider = speed(replace(sweep, rows=sweep.rows[:1]), concurrency + more * groups)[0]
    uses = [_use("kv", more * groups, "sequence", more * kv_bytes, speeds[0], wider)]
    size = memory(spare + ranks).memory["redundant"] - now.memory["redundant"]
    each = max(1, round(served.experts / trace.experts_per_layer))
    uses.append(_use("redundancy", each, "redundant slot", size, *speeds))
    uses.sort(key=lambda use: -use.tok_s_per_gib)
    missing = {"cache": "every expert is in GPU memory: there is nothing to cache"}
    return GibValue(uses, missing, concurrency, ranks)


def _refuse_full(now: DeploymentProjection, needed: int) -> None:
    if now.max_concurrency is not None and now.max_concurrency < needed:
        raise InputError(
            f"{needed} requests of this length, with those that a GiB more would hold, do not fit "
            f"now: {now.max_concurrency} do, give a lower concurrency"
        )


def _use(use: str, added: int, unit: str, size: float, before: Quantity, after: Quantity) -> GibUse:
    return gib_use(use, added, unit, size, before.value, after.value, after.provenance)
