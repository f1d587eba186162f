"""Everything a report shows, gathered from a trace once. Renderers read this and no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from moeprof import __version__
from moeprof.analysis import (
    AffinityResult,
    LoadResult,
    LocalityResult,
    SamplingError,
    SpecializationResult,
    analyze_affinity,
    analyze_load,
    analyze_locality,
    analyze_specialization,
    sampling_error,
)
from moeprof.analysis.chance import even_router_imbalance
from moeprof.analysis.counting import ExpertCounts, count_experts
from moeprof.analysis.load import WINDOWS
from moeprof.cache import CacheReplays, LruCurve, Scope, lru_curve
from moeprof.errors import InputError, MoeprofError
from moeprof.hardware import Cluster, load_hardware
from moeprof.model import MoEModel, load_model, precision_names
from moeprof.offload import OffloadPlan
from moeprof.offload.transfer import METHODS as HIT_METHODS
from moeprof.projection import DeploymentProjection, Traffic, project_deployment
from moeprof.projection.advice import Advice, LatencyTargets, advise_deployment
from moeprof.report.excerpts import middle_steps
from moeprof.report.offloading import plans_by_memory
from moeprof.report.placing import PlacementComparison, compared_placements
from moeprof.report.policies import replayed_policies
from moeprof.report.projecting import TRAFFIC, ProjectionStudy, method_of, study_projection
from moeprof.result import Result
from moeprof.trace import Phase, Trace, TraceInfo, describe_trace
from moeprof.trace.schema import StoredFile

PRECISIONS = ("bf16", "mxfp8", "nvfp4")

Answer = TypeVar("Answer")
Stage: TypeAlias = Callable[[str], AbstractContextManager[object]]  # entered around what it names
STAGES = 4  # of `gather_report`
FOLLOWED = 22_800_000  # tokens x layers whose order is followed: 400,000 tokens at 57 layers
ALL_TOKENS = "all tokens"
VIEW_CELLS = 100_000  # of all heatmap views together: 0.5 MB of the page


@dataclass(frozen=True)
class ReportContents(Result):
    """The results of one report. What could not be computed is None or empty, and `missing`
    says why, by the name of the part.
    """

    info: TraceInfo
    recorded: MoEModel
    target: MoEModel  # the model that memory and speed are projected for
    cluster: Cluster
    load: LoadResult | None
    gpu_load: LoadResult | None  # experts in order of id on the GPUs of `cluster`
    even_imbalance: float | None  # what a perfectly even router would show at this length
    even_window_imbalance: float | None  # the same for one window of the imbalance over time
    views: Mapping[str, NDArray[np.int64]]  # [layers, experts] by choice of tokens
    views_left_out: int
    followed_tokens: int  # that LRU curves and locality follow: all, or those in the middle
    layer_curve: LruCurve | None
    global_curve: LruCurve | None
    policies: Mapping[Scope, CacheReplays]  # several policies by scope, see `replay_policies`
    expert_bytes: Mapping[str, int]  # one expert of the recorded model, by format
    locality: LocalityResult | None
    affinity: AffinityResult | None
    specialization: SpecializationResult | None
    sampling: SamplingError | None  # where requests were sampled, and the error can be known
    deployments: list[DeploymentProjection]
    offload: list[OffloadPlan]  # by GPU memory, where a host is named
    placement: PlacementComparison | None  # on the GPUs of `cluster`, two or more
    projection: ProjectionStudy | None  # speed and cost of `target`
    advice: Advice | None  # the cheapest deployments of `target` on `cluster`
    missing: Mapping[str, str]
    files: list[StoredFile] = field(default_factory=list)
    recorded_by: str = ""  # version of moeprof that wrote the trace
    recorded_at_s: float = 0.0  # Unix time; 0 where not known
    command: str = ""
    version: str = __version__

    @property
    def transfer(self) -> bool:
        """True where the routing is of one model and the projection of another."""
        return _shape(self.recorded) != _shape(self.target)


def gather_report(
    trace: Trace,
    *,
    hardware: str | Path | Cluster = "8xh200",
    target: MoEModel | str | Path | None = None,
    transfer: str | None = None,
    traffic: Traffic = TRAFFIC,
    targets: LatencyTargets | None = None,
    detailed: bool = False,
    command: str = "",
    stage: Stage = nullcontext,
) -> ReportContents:
    """All results that a report of `trace` shows.

    `target` is the model that memory and speed are projected for, the recorded one if None, under
    `traffic`; with `detailed` also what takes seconds: requests that come by themselves, and models
    compared at the same speed for users. Advice is for `targets`; None: as fast as projected. Where
    `hardware` names a host, speed with experts in its memory is projected too. If the target is not
    what was recorded, the recording tells of its speed only by a `transfer` method. `stage(title)`
    is entered around each of `STAGES` parts of the work. Raises InputError for unknown hardware;
    what the trace cannot answer becomes a sentence in `missing`.
    """
    cluster = load_hardware(hardware)
    model = trace.model if target is None else load_model(target)
    missing: dict[str, str] = {}
    with stage("counting loads"):
        counts = _counts(trace, missing)
        load = analyze_load(trace, counts=counts) if counts else None
        gpu_load = _gpu_load(trace, counts, cluster, missing) if counts else None
        views, views_left_out = _views(counts) if counts else ({}, 0)
    with stage("replaying caches"):
        followed = (
            trace
            if trace.counts_only or not trace.layers
            else middle_steps(trace, None, FOLLOWED // len(trace.layers))
        )
        layer_curve, global_curve = _curves(followed, missing)
        policies = replayed_policies(trace, _replayed(trace), missing) if layer_curve else {}
    with stage("placing experts and projecting speed"):
        placement = compared_placements(trace, cluster, "fp8", missing) if counts else None
        projection = study_projection(
            trace,
            model,
            cluster,
            _precisions(model),
            traffic,
            transfer=transfer,
            placement=placement,
            detailed=detailed,
            missing=missing,
        )
        advice = _advice(projection, model, cluster, traffic, targets, missing)
    with stage("analysing locality, affinity and specialization"):
        locality = affinity = specialization = None
        if counts:
            locality = _analysed("locality", analyze_locality, followed, missing)
            affinity = _analysed("affinity", analyze_affinity, trace, missing)
            specialization = _analysed("specialization", analyze_specialization, trace, missing)
    return ReportContents(
        info=describe_trace(trace),
        recorded=trace.model,
        target=model,
        cluster=cluster,
        load=load,
        gpu_load=gpu_load,
        even_imbalance=_even(load, load.tokens) if load and load.tokens else None,
        even_window_imbalance=_even(load, load.window_tokens) if load and load.over_time else None,
        views=views,
        views_left_out=views_left_out,
        followed_tokens=followed.tokens,
        layer_curve=layer_curve,
        global_curve=global_curve,
        policies=policies,
        expert_bytes=_expert_bytes(trace.model, missing),
        locality=locality,
        affinity=affinity,
        specialization=specialization,
        sampling=_sampling(trace, missing) if counts else None,
        deployments=_deployments(model, cluster, missing),
        offload=plans_by_memory(
            trace,
            model,
            cluster,
            precision=_precisions(model)[-1],
            transfer=method_of(transfer, HIT_METHODS),
            missing=missing,
        ),
        placement=placement,
        projection=projection,
        advice=advice,
        missing=missing,
        files=list(trace.manifest.files),
        recorded_by=trace.manifest.moeprof,
        recorded_at_s=trace.manifest.clock_base,
        command=command,
    )


def _shape(model: MoEModel) -> tuple[object, ...]:
    routing = (model.moe_layers, model.experts, model.top_k)
    return (*routing, model.layers, model.hidden_size, model.expert_intermediate_size)


def _counts(trace: Trace, missing: dict[str, str]) -> ExpertCounts | None:
    """The one count that loads and views are made of."""
    try:
        counts = count_experts(trace, WINDOWS)
        if not counts.total.any():
            raise InputError("the recording holds no assignments")
        return counts
    except InputError as error:
        missing["load"] = str(error)
        return None


def _gpu_load(
    trace: Trace, counts: ExpertCounts, cluster: Cluster, missing: dict[str, str]
) -> LoadResult | None:
    try:
        return analyze_load(trace, gpus=cluster.gpus, counts=counts)
    except InputError as error:
        missing["gpus"] = str(error)
        return None


def _even(load: LoadResult, tokens: int) -> float:
    return even_router_imbalance(tokens * load.top_k, load.experts)


def _views(counts: ExpertCounts) -> tuple[dict[str, NDArray[np.int64]], int]:
    """Loads to choose from in the heatmap, as many as the page has room for, and how many not."""
    parts = _partial_loads(counts)
    shown = min(len(parts), max(0, VIEW_CELLS // counts.total.size - 1))
    return {ALL_TOKENS: counts.total, **dict(parts[:shown])}, len(parts) - shown


def _partial_loads(counts: ExpertCounts) -> list[tuple[str, NDArray[np.int64]]]:
    """(name, load) of each phase and label that some tokens have, and not all."""
    phases, labels = counts.by_phase(), counts.by_label()
    parts: list[tuple[str, NDArray[np.int64]]] = []
    if len(set(counts.phases)) > 1:
        parts += [(name, phases[name]) for name in ("prefill", "decode") if name in phases]
    if len(set(counts.labels)) > 1:
        parts += [(f"label {name}", load) for name, load in labels.items()]
    return parts


def _curves(trace: Trace, missing: dict[str, str]) -> tuple[LruCurve | None, LruCurve | None]:
    """LRU per layer and over all layers, of the decode tokens where there are any."""
    if trace.counts_only:
        missing["cache"] = (
            "the recording holds counts only, and a cache replay needs the order of tokens"
        )
        return None, None
    phase = _replayed(trace)
    try:
        layered = lru_curve(trace, scope=Scope.LAYER, phase=phase)
        return layered, lru_curve(trace, scope=Scope.GLOBAL, phase=phase)
    except InputError as error:
        missing["cache"] = str(error)
        return None, None


def _replayed(trace: Trace) -> Phase | None:
    """Decode tokens where there are any, else all."""
    return Phase.DECODE if (trace.phase == Phase.DECODE).any() else None


def _expert_bytes(model: MoEModel, missing: dict[str, str]) -> dict[str, int]:
    try:
        return {name: model.bytes_per_expert(name) for name in PRECISIONS}
    except InputError as error:
        missing["expert bytes"] = str(error)
        return {}


def _analysed(
    name: str, analyze: Callable[[Trace], Answer], trace: Trace, missing: dict[str, str]
) -> Answer | None:
    """What `analyze` finds; None where the trace cannot answer, which `missing` then says."""
    if trace.counts_only:
        missing[name] = "the recording holds counts only, without tokens and requests"
        return None
    try:
        return analyze(trace)
    except InputError as error:
        missing[name] = str(error)
        return None


def _sampling(trace: Trace, missing: dict[str, str]) -> SamplingError | None:
    """The error of a sample; None where every request was to be recorded."""
    if trace.manifest.sampling is None:
        return None
    try:
        return sampling_error(trace)
    except InputError as error:
        missing["sampling"] = str(error)
        return None


def _precisions(model: MoEModel) -> list[str]:
    """Three to compare: published ones before others."""
    return [*dict.fromkeys(("bf16", *precision_names(model), *PRECISIONS))][:3]


def _deployments(
    model: MoEModel, cluster: Cluster, missing: dict[str, str]
) -> list[DeploymentProjection]:
    """The target in BF16 and the precisions it was published in, tensor-parallel as far as its
    heads divide."""
    heads = model.attention.heads if model.attention else 1
    tp = gcd(heads, cluster.gpus_per_node)
    dp = cluster.gpus // tp
    try:
        return [
            project_deployment(model, cluster, precision=name, tp=tp, dp=dp)
            for name in _precisions(model)
        ]
    except InputError as error:
        missing["memory"] = str(error)
        return []


def _advice(
    study: ProjectionStudy | None,
    model: MoEModel,
    cluster: Cluster,
    traffic: Traffic,
    targets: LatencyTargets | None,
    missing: dict[str, str],
) -> Advice | None:
    """The cheapest deployments that meet `targets`, or keep users waiting no longer than the one
    that is projected."""
    if study is None:
        return None
    chosen = study.chosen
    if targets is None and chosen.tpot_ms and chosen.ttft_ms:
        targets = LatencyTargets(chosen.tpot_ms.value, chosen.ttft_ms.value)
    try:
        return advise_deployment(model, [cluster], targets or LatencyTargets(), traffic)
    except MoeprofError as error:
        missing["advice"] = str(error)
        return None
