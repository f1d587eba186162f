"""The levers of a deployment: precision, ranks and placement, one pulled at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from moeprof.errors import InputError
from moeprof.model import load_precision
from moeprof.projection.advice.formats import runnable_precisions
from moeprof.projection.advice.option import Option
from moeprof.projection.advice.recorded import RecordedRouting
from moeprof.projection.advice.splits import list_splits, split_name
from moeprof.projection.deployment import Deployment
from moeprof.projection.holding import deployment_ledger
from moeprof.projection.laws import Laws
from moeprof.projection.parallelism import Parallelism
from moeprof.projection.routing import RoutingModel
from moeprof.projection.speed import project_speed
from moeprof.projection.step.loads import ExpertLoads, RoutedLoads
from moeprof.quantity import Quantity
from moeprof.result import Result

Item = TypeVar("Item")


@dataclass(frozen=True)
class LeverRow(Result):
    """One setting of one lever at the requests of the option. `change` is of tokens/s, against the
    first row of its lever; times are None where nothing says them, and `note` says why.

    `imbalance` is the load of the busiest rank over the mean one in a decode step, layer by layer.
    """

    lever: str  # precision, ranks or placement
    setting: str
    fits: bool
    tpot_ms: Quantity | None
    output_tok_s: Quantity | None
    change: float | None
    imbalance: float | None = None
    note: str = ""


def pull_levers(option: Option, laws: Laws, recorded: RecordedRouting | None) -> list[LeverRow]:
    """Every other precision, every other split, and the placement of experts on ranks.

    The first row of precision and ranks is the option itself; placement is that of experts gone
    whole to all ranks, whatever the option does, and is unknown without a recording.
    """
    return [
        *_compared(list(_precisions(option, laws, recorded))),
        *_compared(list(_ranks(option, laws, recorded))),
        *_compared(list(_placements(option, laws, recorded))),
    ]


def _precisions(option: Option, laws: Laws, recorded: RecordedRouting | None) -> Iterator[LeverRow]:
    deployment = option.deployment
    gpu, model = deployment.cluster.profile, deployment.model
    others = runnable_precisions(model, gpu, deployment.engine)
    for name in _first(option.precision, others):
        other = replace(deployment, precision=load_precision(name, model))
        yield _row("precision", name, other, option, laws, _loads(recorded, other.parallelism))


def _ranks(option: Option, laws: Laws, recorded: RecordedRouting | None) -> Iterator[LeverRow]:
    deployment = option.deployment
    cluster = deployment.cluster
    splits = list_splits(deployment.model, cluster.gpus, deployment.engine, cluster.nodes)
    for split in _first(deployment.parallelism, splits):
        other = replace(deployment, parallelism=split)
        yield _row("ranks", split_name(split), other, option, laws, _loads(recorded, split))


def _placements(option: Option, laws: Laws, recorded: RecordedRouting | None) -> Iterator[LeverRow]:
    deployment = option.deployment
    ranks = min(deployment.parallelism.stage_ranks, max(1, deployment.model.experts))
    if ranks == 1 or not deployment.model.experts:
        yield _unknown("one rank holds all experts: nothing to place")
        return
    if recorded is None:
        yield _unknown("unknown without a recording: --trace T")
        return
    try:
        spread = replace(deployment, parallelism=replace(deployment.parallelism, ep=ranks))
    except InputError as error:
        yield _unknown(str(error))
        return
    for setting, routing in recorded.placed(ranks).items():
        loads = RoutedLoads(routing, ranks)
        row = _row("placement", f"EP {ranks}, {setting}", spread, option, laws, loads)
        yield replace(row, imbalance=_imbalance(option, routing, ranks))


def _row(
    lever: str,
    setting: str,
    deployment: Deployment,
    option: Option,
    laws: Laws,
    loads: ExpertLoads | None,
) -> LeverRow:
    speed = project_speed(deployment, option.traffic, laws=laws, loads=loads)
    fits = deployment_ledger(deployment, option.traffic).fits
    note = "" if fits else "does not fit: as fast as a card with more memory"
    return LeverRow(lever, setting, fits, speed.tpot_ms, speed.output_tok_s, 0.0, None, note)


def _unknown(why: str) -> LeverRow:
    return LeverRow("placement", "-", True, None, None, None, None, why)


def _compared(rows: list[LeverRow]) -> list[LeverRow]:
    base = rows[0].output_tok_s
    return [
        row
        if row.output_tok_s is None or base is None
        else replace(row, change=row.output_tok_s.value / base.value - 1)
        for row in rows
    ]


def _imbalance(option: Option, routing: RoutingModel, ranks: int) -> float:
    tokens = option.concurrency * (1 + option.traffic.draft_tokens)
    return routing.load(tokens, ranks).imbalance


def _loads(recorded: RecordedRouting | None, split: Parallelism) -> ExpertLoads | None:
    return None if recorded is None else recorded.loads(split.ep)


def _first(mine: Item, others: list[Item]) -> list[Item]:
    return [mine, *(other for other in others if other != mine)]
