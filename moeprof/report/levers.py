"""How much the time of an output token hangs on each thing that it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moeprof.hardware import Cluster
from moeprof.model import MoEModel, load_precision
from moeprof.projection import DeploymentProjection, Traffic, plan_deployment, project_speed
from moeprof.projection.advice import TornadoBar, tornado_bars
from moeprof.projection.routing.uniform import shape_of
from moeprof.projection.step.loads import EvenLoads, ExpertLoads
from moeprof.result import Result

EVEN, RECORDED = "even", "as recorded"


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


def levers_of(
    model: MoEModel,
    cluster: Cluster,
    chosen: DeploymentProjection,
    precisions: Sequence[str],
    traffic: Traffic,
    loads: ExpertLoads | None,
) -> list[Lever]:
    """Each changed alone, the most effective first: the bars of `tornado_bars`, the format of the
    weights, and what the law may be off by. Experts are those of `loads`, even routing if None.
    """
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
    routings: dict[str, ExpertLoads] = {}
    if loads is not None:
        routings = {EVEN: EvenLoads(shape_of(model), split.ep), RECORDED: loads}
    bars = tornado_bars(deployment, traffic, loads=loads, routings=routings)
    found = {bar.factor: _ends(bar) for bar in bars}
    found["format of the weights"] = [
        (
            name.upper(),
            project_speed(
                replace(deployment, precision=load_precision(name, model)), traffic, loads=loads
            ).tpot_ms.value,
        )
        for name in precisions
    ]
    found["80 % band of the law"] = _band(chosen)
    levers = [_lever(name, values) for name, values in found.items() if len(values) > 1]
    return sorted(levers, key=lambda lever: -lever.spread_ms)


_Values = list[tuple[str, float]]  # (the value, milliseconds there)


def _ends(bar: TornadoBar) -> _Values:
    return [(bar.low_setting, bar.tpot_ms[0]), (bar.high_setting, bar.tpot_ms[1])]


def _band(chosen: DeploymentProjection) -> _Values:
    tpot = chosen.tpot_ms
    if tpot is None or tpot.low is None or tpot.high is None:
        return []
    return [("low end", tpot.low), ("high end", tpot.high)]


def _lever(name: str, values: _Values) -> Lever:
    fast, *_, slow = sorted(values, key=lambda each: each[1])
    return Lever(name, fast[0], slow[0], fast[1], slow[1])
