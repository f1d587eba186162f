"""One deployment: does it fit, for how many requests, how fast, at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moeprof.hardware import Cluster
from moeprof.model import MoEModel, Precision
from moeprof.projection.bounds import decode_bound, decode_read_bytes
from moeprof.projection.closed_loop import Traffic, check_traffic
from moeprof.projection.cost import cost_per_million
from moeprof.projection.deployment import DEFAULT_ENGINE, Deployment, Held, plan_deployment
from moeprof.projection.holding import deployment_ledger
from moeprof.projection.laws import Laws
from moeprof.projection.memory import MemoryLedger
from moeprof.projection.speed import Speed, project_speed
from moeprof.projection.step.loads import ExpertLoads
from moeprof.quantity import Quantity
from moeprof.result import Result


@dataclass(frozen=True)
class DeploymentProjection(Result):
    """Memory of the fullest rank, speed in steady serving, and the bound on decode at batch 1.

    `memory` holds bytes by class and their `total`; `ledger` the same with provenance and source.
    `max_concurrency` is how many requests of this length fit at a time, with their KV and states.
    Times and rates have 80 % bands; they are None where no lengths were asked for, and where
    experts stand in host memory: `plan_offload` answers then. `share` is the part of an output
    token's time that each operation takes, `operations` the milliseconds. What
    does not fit has a speed all the same: that of a card with more memory.
    """

    concurrency: int
    input_len: int  # tokens
    output_len: int  # tokens
    engine: str
    fits: bool
    memory: Mapping[str, float] = field(hash=False)
    max_concurrency: int | None  # None where the length of requests is not given
    tpot_ms: Quantity | None
    ttft_ms: Quantity | None
    output_tok_s: Quantity | None  # of all GPUs together
    total_tok_s: Quantity | None  # prompt tokens too
    running: float | None  # requests that decode at a time; the rest waits for memory
    operations: Mapping[str, float] = field(hash=False)
    share: Mapping[str, float] = field(hash=False)
    measured: tuple[str, ...]  # operations whose kernels were timed; the others are of the law
    familiarity: str | None
    cost_per_million_tokens: Quantity | None  # USD of a million output tokens
    ledger: MemoryLedger
    decode_read: Quantity  # bytes of weights that one step reads over all GPUs
    decode_bound: Quantity  # steps/s, an upper bound


def project_deployment(
    model: MoEModel | str | Path,
    hardware: Cluster | str,
    *,
    precision: str | Mapping[str, str] | Precision = "bf16",
    tp: int | None = None,
    ep: int = 1,
    dp: int = 1,
    pp: int = 1,
    pad_heads: bool = False,
    engine: str = DEFAULT_ENGINE,
    release: str | None = None,
    kv_dtype: str = "bf16",
    index_dtype: str = "bf16",
    concurrency: int = 1,
    input_len: int = 0,
    output_len: int = 0,
    draft_tokens: int = 0,
    accepted: float = 1.0,
    cached_len: int = 0,
    utilization: float | None = None,
    redundant: int = 0,
    cache_slots: int | None = None,
    ram_bytes: int | None = None,
    draft: str | None = None,
    mtp: bool = False,
    laws: Laws | None = None,
    loads: ExpertLoads | None = None,
) -> DeploymentProjection:
    """Memory and speed of `model` on `hardware` with `concurrency` requests at a time.

    Every request has `input_len` prompt and `output_len` generated tokens, and is replaced when it
    ends; `cached_len` of its prompt tokens are in the cache. `tp` is all GPUs over `dp` x `pp` if
    None. With speculative decoding a step computes `draft_tokens` more a sequence and yields
    `accepted` tokens on average. What GPUs hold beside is as in `project_memory`. `laws` are the
    shipped ones, or calibrated ones; `loads` the experts that steps read, those of even routing if
    None. Raises InputError for values out of range; what does not fit is an answer, not an error.
    """
    deployment = plan_deployment(
        model,
        hardware,
        precision=precision,
        tp=tp,
        ep=ep,
        dp=dp,
        pp=pp,
        pad_heads=pad_heads,
        engine=engine,
        release=release,
        kv_dtype=kv_dtype,
        index_dtype=index_dtype,
        held=Held(utilization, redundant, cache_slots, ram_bytes, draft, mtp),
    )
    traffic = Traffic(concurrency, input_len, output_len, draft_tokens, accepted, cached_len)
    check_traffic(traffic)
    ledger = deployment_ledger(deployment, traffic)
    speed = None
    if input_len and output_len and cache_slots is None:
        speed = project_speed(deployment, traffic, laws=laws, loads=loads)
    return _answer(deployment, traffic, ledger, speed)


def _answer(
    deployment: Deployment, traffic: Traffic, ledger: MemoryLedger, speed: Speed | None
) -> DeploymentProjection:
    model, cluster, precision = deployment.model, deployment.cluster, deployment.precision
    sizes = {name: size.value for name, size in ledger.classes.items()}
    most = ledger.max_sequences
    return DeploymentProjection(
        concurrency=traffic.concurrency,
        input_len=traffic.input_len,
        output_len=traffic.output_len,
        engine=deployment.engine,
        fits=ledger.fits,
        memory=sizes | {"total": ledger.total.value},
        max_concurrency=None if most is None else most * deployment.parallelism.dp,
        tpot_ms=speed.tpot_ms if speed else None,
        ttft_ms=speed.ttft_ms if speed else None,
        output_tok_s=speed.output_tok_s if speed else None,
        total_tok_s=speed.total_tok_s if speed else None,
        running=speed.running if speed else None,
        operations=speed.operations if speed else {},
        share=speed.share if speed else {},
        measured=speed.measured if speed else (),
        familiarity=speed.familiarity if speed else None,
        cost_per_million_tokens=cost_per_million(cluster, speed.output_tok_s) if speed else None,
        ledger=ledger,
        decode_read=decode_read_bytes(model, precision, model.top_k),
        decode_bound=decode_bound(model, cluster, precision, model.top_k),
    )
