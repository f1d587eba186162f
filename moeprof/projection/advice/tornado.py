"""What a projection hangs on: one input at a time a little less and a little more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from moeprof.projection.closed_loop import Traffic, closed_loop
from moeprof.projection.deployment import Deployment
from moeprof.projection.holding import running_limit
from moeprof.projection.laws import Laws, shipped_laws
from moeprof.projection.step.groups import groups_of
from moeprof.projection.step.loads import ExpertLoads
from moeprof.projection.step.model import StepModel, step_model
from moeprof.projection.step.terms import TERM_NAMES
from moeprof.quantity import Provenance
from moeprof.result import Result

CHANGE = 0.2
_LAUNCHES = ("step", "layer", "moe_layer", "sequence", "prefill_chunk", "prefill_token")
_LAUNCHED = np.array([name in _LAUNCHES for name in TERM_NAMES])


@dataclass(frozen=True)
class TornadoBar(Result):
    """One input at two settings, everything else as it is. Times in ms, rates of all GPUs."""

    factor: str
    low_setting: str
    high_setting: str
    tpot_ms: tuple[float, float]  # at the low and at the high setting
    output_tok_s: tuple[float, float]
    base_tpot_ms: float
    base_output_tok_s: float

    @property
    def swing(self) -> float:
        """How far tokens/s move between the two settings, as a share of the base."""
        low, high = self.output_tok_s
        return abs(high - low) / self.base_output_tok_s


def tornado_bars(
    deployment: Deployment,
    traffic: Traffic,
    *,
    laws: Laws | None = None,
    loads: ExpertLoads | None = None,
    routings: Mapping[str, ExpertLoads] | None = None,
    change: float = CHANGE,
) -> list[TornadoBar]:
    """Bars for a tornado plot, the longest first: every input times 1 - `change` and 1 + `change`.

    `routings` are other loads by name (even, recorded, placed): a bar of its own between the two
    that are furthest apart, `loads` being the base.
    """
    laws = laws or shipped_laws()
    groups = groups_of(deployment)
    base = _Run(
        step_model(deployment, laws.step, groups, loads),
        traffic,
        laws.first_token.constants(groups),
    )
    made = [_bar(name, vary, base, change) for name, vary in _factors(base).items()]
    if routings and len(routings) > 1:
        made.append(_routing_bar(base, routings))
    return sorted(made, key=lambda bar: -bar.swing)


@dataclass(frozen=True)
class _Run:
    model: StepModel
    traffic: Traffic
    first_constants: np.ndarray[tuple[int], np.dtype[np.float64]]

    def speeds(self) -> tuple[float, float]:
        """(TPOT in ms, output tokens/s)."""
        limit = running_limit(self.model.deployment, self.traffic)
        loop = closed_loop(self.model, self.traffic, limit)
        first = float(loop.ttft_amounts @ self.first_constants)
        output = self.traffic.output_len
        whole = first + (output - 1) * loop.tpot_s
        return 1e3 * loop.tpot_s, self.traffic.concurrency * output / whole


_Vary = Callable[[_Run, float], _Run]


def _factors(base: _Run) -> dict[str, _Vary]:
    found: dict[str, _Vary] = {
        "memory bandwidth": _memory,
        "arithmetic": _arithmetic,
        "launches and host": _launches,
        "prompt length": _prompt,
        "answer length": _answer,
        "requests at a time": _requests,
    }
    if base.model.deployment.parallelism.stage_ranks > 1:
        found["links between GPUs"] = _links
    if base.model.deployment.model.experts:
        found["distinct experts"] = _distinct
    if base.traffic.draft_tokens:
        found["tokens accepted a step"] = _accepted
    return found


def _bar(name: str, vary: _Vary, base: _Run, change: float) -> TornadoBar:
    low, high = (vary(base, factor).speeds() for factor in (1 - change, 1 + change))
    return _between(name, (f"-{change:.0%}", low), (f"+{change:.0%}", high), base)


def _routing_bar(base: _Run, routings: Mapping[str, ExpertLoads]) -> TornadoBar:
    named = {
        name: replace(base, model=replace(base.model, loads=loads)).speeds()
        for name, loads in routings.items()
    }
    least, most = (pick(named.items(), key=lambda item: item[1][0]) for pick in (min, max))
    return _between("routing", least, most, base)


def _between(
    name: str,
    low: tuple[str, tuple[float, float]],
    high: tuple[str, tuple[float, float]],
    base: _Run,
) -> TornadoBar:
    middle = base.speeds()
    tpot, rate = zip(low[1], high[1], strict=True)
    return TornadoBar(name, low[0], high[0], tpot, rate, *middle)


def _memory(run: _Run, factor: float) -> _Run:
    work = run.model.work
    peaks = replace(work.peaks, memory=work.peaks.memory * factor)
    return replace(run, model=replace(run.model, work=replace(work, peaks=peaks)))


def _arithmetic(run: _Run, factor: float) -> _Run:
    work = run.model.work
    flops = {name: rate * factor for name, rate in work.peaks.flops.items()}
    faster = replace(
        work,
        peaks=replace(work.peaks, flops=flops),
        dense_flops=work.dense_flops * factor,
        expert_flops=work.expert_flops * factor,
    )
    return replace(run, model=replace(run.model, work=faster))


def _links(run: _Run, factor: float) -> _Run:
    work, peaks = run.model.work, run.model.work.peaks
    faster = replace(peaks, reduce=peaks.reduce * factor, exchange=peaks.exchange * factor)
    return replace(run, model=replace(run.model, work=replace(work, peaks=faster)))


def _launches(run: _Run, factor: float) -> _Run:
    constants = run.model.constants * np.where(_LAUNCHED, factor, 1.0)
    return replace(run, model=replace(run.model, constants=constants))


def _distinct(run: _Run, factor: float) -> _Run:
    loads = ScaledLoads(run.model.loads or run.model.work.even, factor, _most_distinct(run))
    return replace(run, model=replace(run.model, loads=loads))


def _most_distinct(run: _Run) -> float:
    deployment = run.model.deployment
    return deployment.model.experts / deployment.parallelism.ep


def _prompt(run: _Run, factor: float) -> _Run:
    traffic = run.traffic
    prompt = max(1, round(traffic.input_len * factor))
    cached = min(round(traffic.cached_len * factor), prompt - 1)
    return replace(run, traffic=replace(traffic, input_len=prompt, cached_len=cached))


def _answer(run: _Run, factor: float) -> _Run:
    answer = max(1, round(run.traffic.output_len * factor))
    return replace(run, traffic=replace(run.traffic, output_len=answer))


def _requests(run: _Run, factor: float) -> _Run:
    requests = max(1, round(run.traffic.concurrency * factor))
    return replace(run, traffic=replace(run.traffic, concurrency=requests))


def _accepted(run: _Run, factor: float) -> _Run:
    most = 1 + run.traffic.draft_tokens
    accepted = min(most, max(1.0, run.traffic.accepted * factor))
    return replace(run, traffic=replace(run.traffic, accepted=accepted))


@dataclass(frozen=True)
class ScaledLoads:
    """Loads whose steps read `factor` times as many experts, up to all that a rank has."""

    loads: ExpertLoads
    factor: float
    most: float

    @property
    def provenance(self) -> Provenance:
        """Nobody has seen such loads."""
        return Provenance.ASSUMED

    def distinct(self, tokens: float, consecutive: int = 1) -> float:
        """As `ExpertLoads.distinct`."""
        return min(self.factor * self.loads.distinct(tokens, consecutive), self.most)

    def imbalance(self, tokens: float) -> float:
        """As it was."""
        return self.loads.imbalance(tokens)
