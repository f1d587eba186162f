"""What each number of redundant experts does to a deployment's speed: rows of a sweep, projected.

A replica lowers what steps wait for, is read beside the expert it copies, and takes the room of KV.
The map of every row is replayed on the tokens that it was not fitted on, and what its busiest ranks
read and compute goes into the steps of the deployment.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from moeprof.errors import InputError
from moeprof.hardware import Cluster
from moeprof.model import MoEModel, load_model
from moeprof.placement.sweep import RedundancySweep
from moeprof.projection.project import project_deployment
from moeprof.projection.routing import TraceRouting, routing_for
from moeprof.projection.step.loads import RoutedLoads
from moeprof.quantity import Provenance, Quantity
from moeprof.trace import Trace


def project_sweep(
    sweep: RedundancySweep,
    trace: Trace,
    hardware: Cluster | str,
    *,
    model: MoEModel | str | Path | None = None,
    concurrency: int | None = None,
    transfer: str | None = None,
    **deployment: Any,
) -> RedundancySweep:
    """`sweep` of `trace` with the output tokens/s of every row, experts on all its GPUs.

    `model` None is the recorded one; of another, as large a share of its experts is redundant.
    `concurrency` None is the sweep's batch; `deployment` is as
    `project_deployment` takes it, its lengths at least. Raises InputError where requests at a time
    or lengths are not given, or the recording is of another model and `transfer` is not given.
    """
    served = trace.model if model is None else load_model(model)
    requests = sweep.batch if concurrency is None else concurrency
    if requests is None:
        raise InputError("the sweep's steps are as recorded: give --batch, requests at a time")
    rows = []
    for row in sweep.rows:
        recorded = TraceRouting(trace, row.placement, share=sweep.share, keep=sweep.judged)
        routing = routing_for(recorded, trace, served, transfer)
        projected = project_deployment(
            served,
            hardware,
            ep=sweep.gpus,
            concurrency=requests,
            redundant=round(row.redundant * served.experts / sweep.experts),
            loads=RoutedLoads(routing, sweep.gpus),
            **deployment,
        )
        if projected.output_tok_s is None:
            raise InputError("give input_len and output_len, the tokens of a request")
        evidence = routing.load(requests, sweep.gpus).provenance
        speed = weakened(projected.output_tok_s, evidence)
        rows.append(replace(row, tok_s=speed, fits=projected.fits))
    return replace(sweep, rows=rows)


def weakened(value: Quantity, evidence: Provenance) -> Quantity:
    """`value`, as good as what it rests on."""
    weakest = max(value.provenance, evidence, key=lambda provenance: provenance.rank)
    return replace(value, provenance=weakest)
