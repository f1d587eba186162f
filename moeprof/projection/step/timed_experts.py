"""Routed experts by the clock: where kernels of this very shape were timed, tables replace the law.

A table times one kernel launched alone. In a served step its launch is one of a captured graph,
which the constants of the step hold; so the launch is taken off, and what grows with the experts
that are read and the rows that are computed is left.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import log

from moeprof.errors import InputError
from moeprof.projection.deployment import Deployment
from moeprof.projection.moe_kernels import (
    M3_SHAPE,
    ExpertShape,
    KernelGroup,
    kernel_groups,
    moe_kernel_seconds,
)
from moeprof.projection.step.groups import weights_format
from moeprof.projection.step.loads import ExpertLoads
from moeprof.quantity import Provenance

# Tokens of a step -> seconds of all its MoE layers on the busiest rank, launches apart.
TimedExperts = Callable[[float], float]

_GRID = 64  # steps of a factor e between which a time is not looked up anew


def timed_experts(deployment: Deployment, loads: ExpertLoads) -> TimedExperts | None:
    """The times of `deployment`'s routed experts; None where nobody timed them."""
    model = deployment.model
    shape = ExpertShape(
        model.hidden_size, model.expert_intermediate_size, model.experts, model.top_k
    )
    if not model.experts or shape != M3_SHAPE or _seconds(deployment, 1, 4) is None:
        return None
    group = _group(deployment)
    layers = len(model.moe_layers)

    @lru_cache(maxsize=4096)
    def at(step: int) -> float:
        tokens = 2.718281828459045 ** (step / _GRID)
        found = _seconds(deployment, tokens, loads.distinct(tokens))
        return 0.0 if found is None else layers * max(0.0, found - group.constants.launch_s)

    return lambda tokens: at(round(_GRID * log(tokens))) if tokens >= 1 else 0.0


def _seconds(deployment: Deployment, tokens: float, distinct: float) -> float | None:
    """Of one layer, if that was measured."""
    parallel, model = deployment.parallelism, deployment.model
    try:
        timed = moe_kernel_seconds(
            deployment.cluster.profile,
            deployment.engine,
            weights_format(deployment).name,
            M3_SHAPE,
            tokens,
            distinct,
            tokens * model.top_k / parallel.ep,
            tp=parallel.moe_tp,
            ep=parallel.ep,
        )
    except InputError:
        return None
    return float(timed.seconds.item()) if timed.provenance is Provenance.MEASURED else None


def _group(deployment: Deployment) -> KernelGroup:
    """The engine's default kernel for the format, the first of its groups."""
    wanted = (
        deployment.cluster.profile.name,
        deployment.engine,
        weights_format(deployment).name,
    )
    return next(g for g in kernel_groups() if (g.hardware, g.engine, g.dtype) == wanted)
