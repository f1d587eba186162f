"""The cheapest deployments that meet targets, why, and how to start them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moeprof.errors import InputError
from moeprof.hardware import Cluster
from moeprof.model import MoEModel, load_model
from moeprof.projection.advice.candidate import Candidate
from moeprof.projection.advice.levers import LeverRow, pull_levers
from moeprof.projection.advice.nearest import Nearest, find_nearest
from moeprof.projection.advice.option import Option
from moeprof.projection.advice.reason import explain_choice
from moeprof.projection.advice.recorded import RecordedRouting
from moeprof.projection.advice.search import Search, best_splits, parse_names
from moeprof.projection.advice.targets import LatencyTargets
from moeprof.projection.advice.tornado import TornadoBar, tornado_bars
from moeprof.projection.closed_loop import Traffic
from moeprof.projection.deployment import DEFAULT_ENGINE, Held
from moeprof.projection.laws import Laws, shipped_laws
from moeprof.projection.routing import shape_of
from moeprof.projection.step.loads import EvenLoads, ExpertLoads
from moeprof.result import Result
from moeprof.trace import Trace


@dataclass(frozen=True)
class Advice(Result):
    """Options by cost, cheapest first: of each hardware and precision the best split.

    `options` is empty where nothing meets the targets; `nearest` says then what comes nearest and
    by how much it misses. `searched` is how many deployments were looked at. `levers` and
    `tornado` are of the first option: what precision, ranks and placement do to it, and what its
    projection hangs on.
    """

    model: str
    engine: str
    targets: LatencyTargets
    input_len: int
    output_len: int
    cached_len: int
    searched: int
    options: list[Option]
    nearest: Nearest | None
    reason: str
    levers: list[LeverRow]
    tornado: list[TornadoBar]

    @property
    def found(self) -> bool:
        """Whether any deployment meets the targets."""
        return bool(self.options)


def advise_deployment(
    model: MoEModel | str | Path,
    hardware: str | Sequence[str | Cluster],
    targets: LatencyTargets,
    traffic: Traffic,
    *,
    engine: str = DEFAULT_ENGINE,
    precisions: Sequence[str] | None = None,
    kv_dtype: str | None = None,
    index_dtype: str = "bf16",
    held: Held | None = None,
    laws: Laws | None = None,
    trace: Trace | None = None,
    transfer: str | None = None,
    context: int | None = None,
) -> Advice:
    """The deployments of `model` that serve requests of the lengths in `traffic` within `targets`.

    `hardware` names clusters (`8xh200`) or GPUs, of which one to eight are tried then; a text may
    name several between commas. Every split that `engine` offers and every published checkpoint
    that it runs there is tried, or those in `precisions`, each with as many requests at a time as
    memory and targets allow. Steps read the experts of `trace`, those of even routing if None;
    `transfer` says how a recording of another model is carried over. `context` is how long the
    longest request may be, for the command lines. Raises InputError for what cannot be; that
    nothing meets the targets is an answer.
    """
    names = parse_names(hardware) if isinstance(hardware, str) else list(hardware)
    if not names:
        raise InputError("no hardware is named to search")
    loaded, laws = load_model(model), laws or shipped_laws()
    recorded = None if trace is None else RecordedRouting(trace, loaded, transfer)
    search = Search(
        model=loaded,
        hardware=names,
        engine=engine,
        traffic=traffic,
        targets=targets,
        laws=laws,
        precisions=precisions,
        kv_dtype=kv_dtype,
        index_dtype=index_dtype,
        held=held or Held(),
        recorded=recorded,
        context=context,
    )
    groups = list(search.groups())
    options = sorted((o for group in groups for o in best_splits(group)), key=lambda o: o.rank)
    candidates = [candidate for group in groups for candidate in group]
    nearest = None if options else find_nearest(candidates)
    return Advice(
        model=search.model.name,
        engine=engine,
        targets=targets,
        input_len=traffic.input_len,
        output_len=traffic.output_len,
        cached_len=traffic.cached_len,
        searched=len(candidates),
        options=options,
        nearest=nearest,
        reason=explain_choice(options, _second_split(options, groups), nearest),
        levers=pull_levers(options[0], laws, recorded) if options else [],
        tornado=_tornado(options[0], search) if options else [],
    )


def _tornado(option: Option, search: Search) -> list[TornadoBar]:
    ep, recorded = option.parallelism.ep, search.recorded
    routings: dict[str, ExpertLoads] = {"even": EvenLoads(shape_of(search.model), ep)}
    routings |= {} if recorded is None else recorded.routings(ep)
    loads = routings.get("recorded")
    return tornado_bars(
        option.deployment, option.traffic, laws=search.laws, loads=loads, routings=routings
    )


def _second_split(options: list[Option], groups: list[list[Candidate]]) -> Option | None:
    """The next best split of what the first option runs on."""
    for group in groups if options else ():
        deployment = group[0].deployment
        mine = (deployment.cluster.name, deployment.precision.name)
        if mine == (options[0].hardware, options[0].precision):
            return next(iter(best_splits(group, 2)[1:]), None)
    return None
