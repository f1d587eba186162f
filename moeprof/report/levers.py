"""How much the time of an output token hangs on each thing that it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moeprof.hardware import Cluster
from moeprof.hardware.figure import Figure
from moeprof.model import MoEModel, load_precision
from moeprof.projection import (
    Deployment,
    DeploymentProjection,
    Traffic,
    plan_deployment,
    shipped_laws,
)
from moeprof.projection.closed_loop import closed_loop
from moeprof.projection.holding import running_limit
from moeprof.projection.step.groups import groups_of
from moeprof.projection.step.loads import ExpertLoads
from moeprof.projection.step.model import step_model
from moeprof.projection.step.terms import TERM_NAMES
from moeprof.quantity import Provenance
from moeprof.result import Result

_BANDWIDTH = "memory_bandwidth_bytes_per_s"
# Terms of the step's law by what they count.
_LAUNCHES = frozenset({"step", "layer", "moe_layer", "sequence"})
_LINKS = frozenset({"reduce", "reduce_latency", "dispatch", "dispatch_latency", "prefill_reduce"})


@dataclass(frozen=True)
class Lever(Result):
    """One thing at two values of it, and the milliseconds of an output token at each."""

    name: str
    fast: str  # the value that takes less time
    slow: str
    fast_ms: float
    slow_ms: float

    @property
    def spread_ms(self) -> float:
        """Between the two."""
        return self.slow_ms - self.fast_ms


@dataclass(frozen=True)
class _Case:
    """What is projected; a lever is this with one thing replaced."""

    deployment: Deployment
    traffic: Traffic
    loads: ExpertLoads | None

    def tpot_ms(self, terms: frozenset[str] = frozenset(), factor: float = 1.0) -> float:
        """Milliseconds of an output token, with the constants of `terms` times `factor`."""
        groups = groups_of(self.deployment)
        steps = step_model(self.deployment, shipped_laws().step, groups, self.loads)
        factors = np.array([factor if name in terms else 1.0 for name in TERM_NAMES])
        steps = replace(steps, constants=steps.constants * factors)
        limit = running_limit(self.deployment, self.traffic)
        return 1e3 * closed_loop(steps, self.traffic, limit).tpot_s


def levers_of(
    model: MoEModel,
    cluster: Cluster,
    chosen: DeploymentProjection,
    precisions: Sequence[str],
    traffic: Traffic,
    loads: ExpertLoads | None,
) -> list[Lever]:
    """Each changed alone, the most effective first. Experts are those of `loads`, even if None."""
    split = chosen.ledger.parallelism
    deployment = plan_deployment(
        model,
        cluster,
        precision=chosen.ledger.precision,
        tp=split.tp,
        ep=split.ep,
        dp=split.dp,
        engine=chosen.engine,
    )
    case = _Case(deployment, traffic, loads)
    found = {
        "memory bandwidth": _bandwidth(case),
        "launches and host": _terms(case, _LAUNCHES),
        "links between GPUs": _terms(case, _LINKS) if cluster.gpus > 1 else [],
        "requests at a time": _traffic(case, "concurrency", ""),
        "prompt": _traffic(case, "input_len", " tokens"),
        "weights": _weights(case, precisions),
        "experts that steps read": _routing(case),
        "80 % band of the law": _band(chosen),
    }
    levers = [_lever(name, values) for name, values in found.items() if len(values) > 1]
    return sorted(levers, key=lambda lever: -lever.spread_ms)


Values = list[tuple[str, float]]  # (the value, milliseconds there)


def _lever(name: str, values: Values) -> Lever:
    fast, slow = (pick(values, key=lambda each: each[1]) for pick in (min, max))
    return Lever(name, fast[0], slow[0], fast[1], slow[1])


def _bandwidth(case: _Case) -> Values:
    cluster, values = case.deployment.cluster, []
    for change in (0.2, -0.2):
        figures = dict(cluster.profile.figures)
        known = figures[_BANDWIDTH]
        figures[_BANDWIDTH] = Figure(known.value * (1 + change), known.unit, Provenance.ASSUMED)
        other = replace(cluster, profile=replace(cluster.profile, figures=figures))
        values.append((f"{change:+.0%}", _on(case, cluster=other).tpot_ms()))
    return values


def _terms(case: _Case, terms: frozenset[str]) -> Values:
    return [(f"{change:+.0%}", case.tpot_ms(terms, 1 + change)) for change in (-0.5, 0.5)]


def _traffic(case: _Case, name: str, unit: str) -> Values:
    value = getattr(case.traffic, name)
    others = (max(1, value // 2), 2 * value)
    traffics = ((other, replace(case.traffic, **{name: other})) for other in others)
    return [(f"{n:,}{unit}", replace(case, traffic=traffic).tpot_ms()) for n, traffic in traffics]


def _weights(case: _Case, precisions: Sequence[str]) -> Values:
    model = case.deployment.model
    return [
        (name.upper(), _on(case, precision=load_precision(name, model)).tpot_ms())
        for name in precisions
    ]


def _routing(case: _Case) -> Values:
    if case.loads is None:
        return []
    even = replace(case, loads=None)
    return [("even routing", even.tpot_ms()), ("as recorded", case.tpot_ms())]


def _band(chosen: DeploymentProjection) -> Values:
    tpot = chosen.tpot_ms
    if tpot is None or tpot.low is None or tpot.high is None:
        return []
    return [("low end", tpot.low), ("high end", tpot.high)]


def _on(case: _Case, **changes: Any) -> _Case:
    return replace(case, deployment=replace(case.deployment, **changes))
