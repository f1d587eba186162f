"""A deployment under a load, beside what it could be: other splits, loads, routings and models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moeprof.errors import InfeasibleError, InputError, MoeprofError
from moeprof.hardware import Cluster
from moeprof.model import MoEModel, load_model, load_precision, precision_names, weight_format
from moeprof.projection import (
    DeploymentProjection,
    Parallelism,
    Traffic,
    project_deployment,
    recorded_loads,
)
from moeprof.projection.advice import LatencyTargets, ModelCost, compare_models
from moeprof.projection.advice.ownership import token_cost
from moeprof.projection.routing.transfer import METHODS, check_routing
from moeprof.projection.serving import make_load
from moeprof.projection.serving.project import ServingProjection, project_serving
from moeprof.projection.step.loads import ExpertLoads
from moeprof.quantity import Provenance, Quantity
from moeprof.report.levers import Lever, levers_of
from moeprof.report.placing import PlacementComparison
from moeprof.report.routed_speeds import RoutedStep, routed_steps
from moeprof.result import Result
from moeprof.trace import Trace

TRAFFIC = Traffic(concurrency=64, input_len=1024, output_len=1024)
CONCURRENCIES = (1, 4, 16, 64, 256)
MORE_CONCURRENCIES = (2, 8, 32, 128, 512)  # of the chosen split alone
ARRIVALS = (0.3, 0.6, 0.8, 0.95)  # of the requests/s that the closed loop reaches
COMPARED = ("llama-3.1-70b", "llama-3.1-405b")  # dense models that a planner would have instead
_MOST_SPLITS = 4
_ARRIVED = 200  # requests of one simulation
# What a GPU must state to multiply a format; one that it must unpack first is rarely served.
_NEEDS = {
    **dict.fromkeys(("fp8", "fp8_block", "mxfp8"), "dense_tflops_fp8"),
    **dict.fromkeys(("nvfp4", "mxfp4"), "dense_tflops_fp4"),
}


@dataclass(frozen=True)
class ProjectionStudy(Result):
    """`chosen` is the fastest split that fits, in the fastest format that the GPU multiplies.

    `splits` holds every split by rising concurrency, `load` the chosen one at more of them,
    `arrivals` the same under requests that come by themselves, `models` the chosen deployment of
    each model on the same hardware. `routing` says whose routing times are projected with.
    """

    traffic: Traffic
    cluster: Cluster
    chosen: DeploymentProjection
    splits: list[list[DeploymentProjection]]
    load: list[DeploymentProjection]
    arrivals: list[ServingProjection]
    levers: list[Lever]
    routed: list[RoutedStep]
    routing: str  # "even", "recorded", or the method by which a recording is carried over
    models: list[DeploymentProjection]
    as_fast: list[ModelCost]  # each with as many requests as the chosen one's TPOT and TTFT allow

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.cluster.gpus


def study_projection(
    trace: Trace,
    model: MoEModel,
    cluster: Cluster,
    precisions: Sequence[str],
    traffic: Traffic,
    *,
    transfer: str | None,
    placement: PlacementComparison | None,
    detailed: bool,
    missing: dict[str, str],
) -> ProjectionStudy | None:
    """What a report shows of the speed of `model` on `cluster`; None, with the reason, where there
    is nothing.
    """
    try:
        found = _fastest(model, cluster, precisions, traffic)
    except MoeprofError as error:
        missing["projection"] = str(error)
        return None
    precision = found.ledger.precision
    ladder = sorted({*CONCURRENCIES, traffic.concurrency})
    splits = [
        [_project(model, cluster, each, precision, _at(traffic, c)) for c in ladder]
        for each in splits_of(model, cluster)
    ]
    fitting = [row for line in splits for row in line if row.fits and _is_at(row, traffic)]
    best = max(fitting, key=_rate).ledger.parallelism
    transfer = method_of(transfer, METHODS)
    routing, loads = _routing(trace, model, best.ep, transfer, missing)
    chosen = _project(model, cluster, best, precision, traffic, loads)
    chosen = _weakened(chosen) if routing not in ("even", "recorded") else chosen
    routed: list[RoutedStep] = []
    if loads is not None:
        routed = routed_steps(trace, model, cluster, chosen, traffic, transfer, placement, missing)
    more = [_project(model, cluster, best, precision, _at(traffic, c)) for c in MORE_CONCURRENCIES]
    same = next(line for line in splits if line[0].ledger.parallelism == best)
    return ProjectionStudy(
        traffic=traffic,
        cluster=cluster,
        chosen=chosen,
        splits=splits,
        load=sorted([*same, *more], key=lambda row: row.concurrency),
        arrivals=_arrivals(model, cluster, chosen, traffic, missing) if detailed else [],
        levers=levers_of(model, cluster, chosen, precisions, traffic, loads),
        routed=routed,
        routing=routing,
        models=[chosen, *_others(model, cluster, traffic)],
        as_fast=_as_fast(model, cluster, chosen, traffic, missing) if detailed else [],
    )


def splits_of(model: MoEModel, cluster: Cluster) -> list[Parallelism]:
    """Ways to spread `model` over all GPUs: attention sliced as far as its heads divide and fewer
    times, experts sliced or whole. Those that are sliced most first.
    """
    found = []
    for dp in (each for each in range(1, cluster.gpus + 1) if cluster.gpus % each == 0):
        tp = cluster.gpus // dp
        whole = bool(model.experts) and 1 < cluster.gpus <= model.experts
        eps = ([1] if dp == 1 or not whole else []) + ([cluster.gpus] if whole else [])
        found += [Parallelism(tp, ep, dp) for ep in eps if _possible(model, cluster, tp, ep, dp)]
    return found[:_MOST_SPLITS]


def _possible(model: MoEModel, cluster: Cluster, tp: int, ep: int, dp: int) -> bool:
    if tp > cluster.gpus_per_node:
        return False
    try:
        Parallelism(tp, ep, dp).check_fits_shape(model, cluster.gpus)
    except InputError:
        return False
    return True


def usable_precisions(model: MoEModel, cluster: Cluster, precisions: Sequence[str]) -> list[str]:
    """Those of `precisions` that the GPU multiplies; all, where it multiplies none."""

    def native(name: str) -> bool:
        formats = load_precision(name, model).formats
        weights = weight_format(formats["routed" if model.experts else "dense"])
        return _NEEDS.get(weights.name, "memory_bytes") in cluster.profile.figures

    return [name for name in precisions if native(name)] or list(precisions)


def _fastest(
    model: MoEModel, cluster: Cluster, precisions: Sequence[str], traffic: Traffic
) -> DeploymentProjection:
    """At `traffic`, of the usable formats and all splits. Raises InfeasibleError if none fits."""
    splits = splits_of(model, cluster)
    if not splits:
        raise InputError(f"no split of {model.name} over {cluster.gpus} GPUs divides its heads")
    usable = usable_precisions(model, cluster, precisions)
    for names in (usable, [name for name in precisions if name not in usable]):
        # The first split has the least time a token; others are tried where it does not fit.
        for split in splits:
            tried = [_project(model, cluster, split, name, traffic) for name in names]
            fitting = [row for row in tried if row.fits]
            if fitting:
                return max(fitting, key=_rate)
    tried_names = ", ".join(name.upper() for name in precisions)
    raise InfeasibleError(
        f"{model.name} with {traffic.concurrency:,} requests of {traffic.input_len:,} + "
        f"{traffic.output_len:,} tokens does not fit on {cluster.name} in {tried_names}"
    )


def _project(
    model: MoEModel,
    cluster: Cluster,
    split: Parallelism,
    precision: str,
    traffic: Traffic,
    loads: ExpertLoads | None = None,
) -> DeploymentProjection:
    done = project_deployment(
        model,
        cluster,
        precision=precision,
        tp=split.tp,
        ep=split.ep,
        dp=split.dp,
        concurrency=traffic.concurrency,
        input_len=traffic.input_len,
        output_len=traffic.output_len,
        loads=loads,
    )
    if done.output_tok_s is None:
        raise InputError("requests without input or output tokens have no speed")
    # Where nobody rents such a machine by the hour: of one that is bought.
    return replace(done, cost_per_million_tokens=token_cost(cluster, done.output_tok_s))


def _at(traffic: Traffic, concurrency: int) -> Traffic:
    return replace(traffic, concurrency=concurrency)


def _is_at(row: DeploymentProjection, traffic: Traffic) -> bool:
    return row.concurrency == traffic.concurrency


def _rate(row: DeploymentProjection) -> float:
    return row.output_tok_s.value if row.output_tok_s else 0.0


def _routing(
    trace: Trace, model: MoEModel, ep: int, transfer: str | None, missing: dict[str, str]
) -> tuple[str, ExpertLoads | None]:
    """(whose routing, its loads); even routing, with the reason, where the recording is no use."""
    if "load" in missing:  # damaged, or without assignments
        missing["routed speed"] = missing["load"]
        return "even", None
    try:
        loads = recorded_loads(trace, model, ep=ep, transfer=transfer)
        loads.distinct(1.0)  # what the recording lacks shows itself here
        loads.imbalance(1.0)
    except MoeprofError as error:
        missing["routed speed"] = str(error).replace(str(trace), "it")
        return "even", None
    carried = check_routing(trace, model, transfer)
    return (str(transfer) if carried else "recorded"), loads


def method_of(transfer: str | None, known: Iterable[str]) -> str | None:
    """The one of several named methods ('distinct-ratio,hit-ratio') that is `known`, else all."""
    names = [] if transfer is None else transfer.split(",")
    return next((name for name in names if name in known), transfer)


def _weakened(row: DeploymentProjection) -> DeploymentProjection:
    """As good as what it rests on: a routing that was carried over."""

    def assumed(each: Quantity | None) -> Quantity | None:
        return None if each is None else replace(each, provenance=Provenance.ASSUMED)

    return replace(
        row,
        tpot_ms=assumed(row.tpot_ms),
        ttft_ms=assumed(row.ttft_ms),
        output_tok_s=assumed(row.output_tok_s),
        total_tok_s=assumed(row.total_tok_s),
        cost_per_million_tokens=assumed(row.cost_per_million_tokens),
    )


def _arrivals(
    model: MoEModel,
    cluster: Cluster,
    chosen: DeploymentProjection,
    traffic: Traffic,
    missing: dict[str, str],
) -> list[ServingProjection]:
    """The chosen deployment under Poisson arrivals, a few rates below what it reaches."""
    most, split = _rate(chosen) / traffic.output_len, chosen.ledger.parallelism
    try:
        return [
            project_serving(
                model,
                cluster,
                make_load(
                    rate=share * most,
                    input_len=traffic.input_len,
                    output_len=traffic.output_len,
                    num_requests=_ARRIVED,
                ),
                precision=chosen.ledger.precision,
                tp=split.tp,
                ep=split.ep,
                dp=split.dp,
            )
            for share in ARRIVALS
        ]
    except MoeprofError as error:
        missing["arrivals"] = str(error)
        return []


def _as_fast(
    model: MoEModel,
    cluster: Cluster,
    chosen: DeploymentProjection,
    traffic: Traffic,
    missing: dict[str, str],
) -> list[ModelCost]:
    """`model` and dense ones, each in the cheapest deployment on `cluster` that is as fast for a
    user as the chosen one."""
    assert chosen.tpot_ms and chosen.ttft_ms
    targets = LatencyTargets(tpot_ms=chosen.tpot_ms.value, ttft_ms=chosen.ttft_ms.value)
    names: list[MoEModel | str | Path] = [model]
    names += [name for name in COMPARED if name != model.name.lower()]
    try:
        return compare_models(names, [cluster], targets, traffic).costs
    except MoeprofError as error:
        missing["as fast"] = str(error)
        return []


def _others(model: MoEModel, cluster: Cluster, traffic: Traffic) -> list[DeploymentProjection]:
    """Dense models under the same load, those that fit."""
    found = []
    for name in (name for name in COMPARED if name != model.name.lower()):
        other = load_model(name)
        published = list(dict.fromkeys(("bf16", "fp8", *precision_names(other))))
        try:
            found.append(_fastest(other, cluster, published, traffic))
        except MoeprofError:
            continue  # the table shows what fits, and its note says so
    return found
