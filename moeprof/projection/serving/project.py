"""A deployment under a load: the laws of its steps, the memory it has for KV, an engine's rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from moeprof.errors import InfeasibleError
from moeprof.hardware import Cluster
from moeprof.model import MoEModel, Precision
from moeprof.projection.closed_loop import Traffic
from moeprof.projection.deployment import DEFAULT_ENGINE, Deployment, Held, plan_deployment
from moeprof.projection.holding import deployment_ledger
from moeprof.projection.laws import (
    FAMILIARITIES,
    Band,
    Laws,
    familiarity,
    provenance_of,
    shipped_laws,
)
from moeprof.projection.memory import MemoryLedger
from moeprof.projection.parallelism import Parallelism
from moeprof.projection.serving.delay import first_token_delay, mean_tokens, usual_running
from moeprof.projection.serving.engine_policy import EnginePolicy, engine_policy
from moeprof.projection.serving.load import Load
from moeprof.projection.serving.outcome import ServingOutcome, Targets
from moeprof.projection.serving.simulation import simulate_serving
from moeprof.projection.step.groups import groups_of
from moeprof.projection.step.loads import ExpertLoads
from moeprof.projection.step.model import step_model
from moeprof.quantity import Provenance

Ends = tuple[float, float]


@dataclass(frozen=True)
class ServingProjection(ServingOutcome):
    """What users of a deployment would see, and what it rests on.

    `bands` holds the ends of each latency percentile and rate: the same simulation with every step
    as fast and as slow as the 80 % band of the step law, so how the law is off on average and not
    what it does from step to step; those of `ttft_ms` are no narrower than the band of the law of
    the first token. `kv_capacity_tokens` is what one data-parallel group holds, and
    `delay_ms` what a first token takes beside the engine's steps (`first_token_delay`).
    """

    model: str
    hardware: str
    precision: str
    parallelism: Parallelism
    engine: EnginePolicy
    load: Load
    kv_capacity_tokens: int
    bands: Mapping[str, Ends | Mapping[str, Ends | None]] = field(hash=False)
    delay_ms: float
    provenance: Provenance
    familiarity: str
    source: str


def project_serving(
    model: MoEModel | str | Path,
    hardware: Cluster | str,
    load: Load,
    *,
    precision: str | Mapping[str, str] | Precision = "bf16",
    tp: int | None = None,
    ep: int = 1,
    dp: int = 1,
    engine: str = DEFAULT_ENGINE,
    release: str | None = None,
    kv_dtype: str = "bf16",
    index_dtype: str = "bf16",
    held: Held | None = None,
    draft_tokens: int = 0,
    accepted: float = 1.0,
    max_step_tokens: int | None = None,
    max_sequences: int | None = None,
    kv_tokens: int | None = None,
    lock_step: bool = True,
    targets: Targets | None = None,
    laws: Laws | None = None,
    loads: ExpertLoads | None = None,
) -> ServingProjection:
    """Simulate `load` on `model`, as `engine` would serve it on `hardware`, request by request.

    Deployment as in `plan_deployment`, the rest as in `serve_deployment`. Raises InfeasibleError
    where the weights do not fit, and InputError for values out of range or a request that never
    fits.
    """
    deployment = plan_deployment(
        model,
        hardware,
        precision=precision,
        tp=tp,
        ep=ep,
        dp=dp,
        engine=engine,
        release=release,
        kv_dtype=kv_dtype,
        index_dtype=index_dtype,
        held=held,
    )
    card = deployment.cluster.profile.memory_bytes.value
    return serve_deployment(
        deployment,
        load,
        policy=engine_policy(engine, card).with_limits(max_step_tokens, max_sequences),
        kv_tokens=kv_capacity(deployment) if kv_tokens is None else kv_tokens,
        draft_tokens=draft_tokens,
        accepted=accepted,
        lock_step=lock_step,
        targets=targets,
        laws=laws,
        loads=loads,
    )


def serve_deployment(
    deployment: Deployment,
    load: Load,
    *,
    policy: EnginePolicy,
    kv_tokens: int,
    draft_tokens: int = 0,
    accepted: float = 1.0,
    lock_step: bool = True,
    targets: Targets | None = None,
    laws: Laws | None = None,
    loads: ExpertLoads | None = None,
) -> ServingProjection:
    """Simulate `load` on `deployment` under the rules of `policy`, `kv_tokens` in each group.

    Step times are those of `laws` (the shipped ones if None) with the experts of `loads` (even
    routing if None). Options as in `simulate_serving`.
    """
    laws = laws or shipped_laws()
    groups = groups_of(deployment)
    steps = step_model(deployment, laws.step, groups, loads)
    dp, near = deployment.parallelism.dp, familiarity(laws, groups)
    most = min(kv_tokens / mean_tokens(load, 0.5), policy.max_sequences)
    running = usual_running(load, steps, most, dp, draft_tokens, accepted)
    delay_s = first_token_delay(laws, groups, steps, load, running, draft_tokens)

    seconds = cache(steps.seconds)  # the runs meet at the same knots

    def run(slower: float) -> ServingOutcome:
        return simulate_serving(
            lambda batch: slower * seconds(batch),
            load.requests,
            engine=policy,
            concurrency=load.concurrency,
            kv_tokens=kv_tokens,
            dp=dp,
            lock_step=lock_step,
            accepted_tokens=accepted,
            draft_tokens=draft_tokens,
            delay_s=slower * delay_s,
            targets=targets,
        )

    band = laws.bands["tpot"][near]
    middle, fast, slow = run(1.0), run(min(band.low, 1.0)), run(max(band.high, 1.0))
    bands = _bands(middle, fast, slow) | {
        "ttft_ms": _first_token_bands(laws.bands["ttft"][near], middle, fast, slow)
    }
    return ServingProjection(
        **vars(middle),
        model=deployment.model.name,
        hardware=deployment.cluster.name,
        precision=deployment.precision.name,
        parallelism=deployment.parallelism,
        engine=policy,
        load=load,
        kv_capacity_tokens=kv_tokens,
        bands=bands,
        delay_ms=1e3 * delay_s,
        provenance=provenance_of(laws.step, groups),
        familiarity=near,
        source=f"{FAMILIARITIES[near]}; {laws.source}",
    )


def kv_capacity(deployment: Deployment) -> int:
    """Tokens of KV that one group has room for. Raises InfeasibleError where weights do not fit."""
    ledger = deployment_ledger(deployment, Traffic(concurrency=1, input_len=0, output_len=0))
    if not ledger.fits or ledger.max_kv_tokens < 1:
        raise InfeasibleError(_short(ledger))
    return ledger.max_kv_tokens


def _short(ledger: MemoryLedger) -> str:
    return (
        f"{ledger.model} in {ledger.precision} does not fit on {ledger.hardware}: every GPU is "
        f"{max(-ledger.free_bytes, 0) / 2**30:.1f} GiB short; "
        "take more ranks or a smaller format (moeprof project)"
    )


def _bands(*runs: ServingOutcome) -> dict[str, Ends | dict[str, Ends | None]]:
    """Least and most of each figure over the runs."""
    found: dict[str, Ends | dict[str, Ends | None]] = {}
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
        spreads = [getattr(run, name) for run in runs]
        found[name] = {key: _ends([spread[key] for spread in spreads]) for key in spreads[0]}
    for name in ("output_tok_s", "total_tok_s", "requests_per_s", "goodput"):
        values = [getattr(run, name) for run in runs]
        found[name] = (min(values), max(values))
    return found


def _first_token_bands(band: Band, *runs: ServingOutcome) -> dict[str, Ends | None]:
    """As `_bands`, and not narrower than the law of the first token was off."""
    found: dict[str, Ends | None] = {}
    for key, value in runs[0].ttft_ms.items():
        own = [] if value is None else [value * band.low, value * band.high]
        found[key] = _ends([*own, *(run.ttft_ms[key] for run in runs)])
    return found


def _ends(values: list[float | None]) -> Ends | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None
