"""Models side by side on the same hardware for the same requests: memory, speed, cost, energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeprof.errors import InputError
from moeprof.hardware import Cluster
from moeprof.model import MoEModel, load_model, weight_bytes
from moeprof.projection.advice.advise import advise_deployment
from moeprof.projection.advice.option import Option
from moeprof.projection.advice.targets import LatencyTargets
from moeprof.projection.closed_loop import Traffic
from moeprof.result import Result


@dataclass(frozen=True)
class ModelCost(Result):
    """A model in its cheapest deployment that meets the targets.

    `weights_bytes` are of the whole checkpoint in the precision of `option`,
    `kv_bytes_per_token` what a token keeps on all ranks of its data-parallel group together, copies
    included. Where nothing meets the targets `option` is None and `problem` says what is nearest.
    """

    model: str
    total_parameters: int
    active_parameters: int
    option: Option | None
    weights_bytes: int | None
    kv_bytes_per_token: int | None
    problem: str


@dataclass(frozen=True)
class Comparison(Result):
    """Models side by side; `options` are the deployments of those that meet the targets."""

    costs: list[ModelCost]
    options: list[Option]


def compare_models(
    models: Sequence[MoEModel | str | Path],
    hardware: str | Sequence[str | Cluster],
    targets: LatencyTargets,
    traffic: Traffic,
    **how: Any,
) -> Comparison:
    """One row a model, in the order given; `how` is as `advise_deployment` has it."""
    costs = [_row(load_model(each), hardware, targets, traffic, how) for each in models]
    return Comparison(costs, [cost.option for cost in costs if cost.option is not None])


def _row(
    model: MoEModel,
    hardware: str | Sequence[str | Cluster],
    targets: LatencyTargets,
    traffic: Traffic,
    how: dict[str, Any],
) -> ModelCost:
    needed = traffic.input_len + traffic.output_len
    if model.max_positions and needed > model.max_positions:
        return _cost(model, None, f"takes {model.max_positions:,} tokens of {needed:,} at most")
    try:
        advice = advise_deployment(model, hardware, targets, traffic, **how)
    except InputError as error:
        return _cost(model, None, str(error))
    if not advice.found:
        return _cost(model, None, advice.reason)
    return _cost(model, advice.options[0], "")


def _cost(model: MoEModel, option: Option | None, problem: str) -> ModelCost:
    weights = kv = None
    if option is not None:
        weights = sum(weight_bytes(model, option.deployment.precision).values())
        tp = option.parallelism.tp
        kv = tp * model.kv_bytes_per_token_per_rank(
            tp, option.kv_dtype, option.deployment.index_dtype
        )
    counts = model.parameters
    return ModelCost(model.name, counts["total"], counts["active"], option, weights, kv, problem)
