"""What a step's routing costs in the kernels of the routed experts: measured where they were timed.

Each layer takes as long as a rank that reads what the one that reads most reads, and computes what
the busiest one computes. They are mostly one rank; where they are not, this is what they take at
most.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import numpy as np

from moeprof.hardware import HardwareProfile
from moeprof.projection.moe_kernels import ExpertShape, moe_kernel_seconds
from moeprof.projection.routing.step_load import StepLoad
from moeprof.quantity import Quantity

_SLACK = 1e-6  # means of many steps carry rounding


def moe_seconds(
    load: StepLoad,
    shape: ExpertShape,
    hardware: str | HardwareProfile,
    engine: str,
    dtype: str,
    *,
    tp: int = 1,
) -> Quantity:
    """Seconds of all MoE layers of a step, and as good as the weaker of load and kernel.

    `tp` cuts each expert; the rest is as `moe_kernel_seconds` says, which also says what is raised.
    The band is the kernel's. A rank that reads more experts than its even part has replicas: the
    kernel is then one of as many experts a rank.
    """
    slots = ceil(float(np.max(load.most_distinct, initial=0.0)) - _SLACK)
    physical = replace(shape, experts=max(shape.experts, slots * load.ranks))
    kernel = moe_kernel_seconds(
        hardware,
        engine,
        dtype,
        physical,
        load.tokens,
        load.most_distinct,
        np.maximum(load.busiest_assignments, load.most_distinct),
        tp=tp,
        ep=load.ranks,
        busiest=load.hottest_tokens,
    )
    return Quantity(
        float(kernel.seconds.sum()),
        "s",
        max(load.provenance, kernel.provenance, key=lambda provenance: provenance.rank),
        float(kernel.low.sum()),
        float(kernel.high.sum()),
        kernel.source,
    )
