"""How many expert slots, which policy, how fast: a trace on one machine with too little memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from moeprof.cache import POLICIES, Scope
from moeprof.cache.contracts import find_contract
from moeprof.cache.requests import parse_scope
from moeprof.errors import InputError
from moeprof.hardware import Cluster, load_hardware
from moeprof.model import MoEModel, Precision, load_model, load_precision
from moeprof.offload.assumptions import state_assumptions, weakest_provenance
from moeprof.offload.memory import GIB
from moeprof.offload.rates import find_rates
from moeprof.offload.results import OffloadPlan
from moeprof.offload.rows import Job, Line, plan_rows
from moeprof.offload.timing import Serve, Service, parse_serve
from moeprof.offload.traffic import Recording
from moeprof.offload.transfer import check_transfer
from moeprof.offload.whole_layers import WHOLE_LAYERS
from moeprof.trace import Phase, Trace

# What `auto` compares: kinds of online policy, a list fitted on the first half, whole layers.
AUTO_POLICIES = ("lru", "lfu", "lfru", "slru", "s3-fifo", "static", WHOLE_LAYERS)


def plan_offload(
    trace: Trace,
    model: MoEModel | str | Path,
    hardware: Cluster | str,
    *,
    vram_bytes: float | Sequence[float] | None = None,
    ram_bytes: float | None = None,
    policy: str | Sequence[str] = "auto",
    scope: Scope | str = Scope.LAYER,
    contract: str = "atomic",
    serve: Serve | str = Serve.AUTO,
    precision: str | Mapping[str, str] | Precision = "bf16",
    context_tokens: int | None = None,
    kv_dtype: str = "bf16",
    transfer: str | None = None,
    pinned: bool = True,
    overlap: bool = True,
    apart: bool = False,
    exclusive: bool = False,
    launches: str = "graph",
    fit: float | None = None,
    seed: int = 0,
    phase: Phase | str = Phase.DECODE,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int = 8192,
) -> OffloadPlan:
    """Speed of `model` with its experts in GPU memory as far as they go, and below.

    `vram_bytes` is of each GPU, several are compared, None is the card's own; `ram_bytes` None is
    enough for all experts. `policy` is one or several of the cache's, or auto. Every request is
    given room for `context_tokens` of KV, None: the longest of the trace. `phase` is decode or
    prefill, whose misses are always copied. `transfer` names how a
    recording of another model is carried over. See docs/offload.md for the law and the options.

    Raises InputError for what contradicts itself, InfeasibleError where something does not fit.
    """
    model, cluster, phase = load_model(model), load_hardware(hardware), _phase(phase)
    policies, scope = _policies(policy), parse_scope(scope)
    job = Job(
        recording=Recording(
            trace, phase, _fit(fit, policies, scope), max_num_seqs, max_num_batched_tokens
        ),
        model=model,
        cluster=cluster,
        precision=load_precision(precision, model),
        rates=find_rates(cluster, pinned=pinned, launches=launches),
        scope=scope,
        contract=find_contract(contract).name,
        service=Service(_served(parse_serve(serve), cluster, phase), overlap, apart),
        carried=check_transfer(trace, model, transfer),
        ram_bytes=ram_bytes,
        context_tokens=_context(trace, context_tokens),
        kv_dtype=kv_dtype,
        exclusive=exclusive,
        seed=seed,
    )
    if exclusive and any(not name.startswith(("static", WHOLE_LAYERS)) for name in policies):
        raise InputError("exclusive: only a static list never evicts, so give --policy static")
    sizes = cluster.profile.memory_bytes.value if vram_bytes is None else vram_bytes
    found = [
        line
        for size in ([sizes] if isinstance(sizes, int | float) else sizes)
        for line in plan_rows(job, policies, float(size))
    ]
    found.sort(key=lambda line: -line.row.tok_s)
    return _plan(job, found, transfer, state_assumptions(job, found[0], pinned, launches))


def _policies(policy: str | Sequence[str]) -> list[str]:
    named = [policy] if isinstance(policy, str) else list(policy)
    return list(dict.fromkeys(p for n in named for p in (AUTO_POLICIES if n == "auto" else (n,))))


def _fit(fit: float | None, policies: list[str], scope: Scope) -> float | None:
    """As `replay_cache` has it: a half where something is fitted."""
    fitted = any(name in POLICIES and POLICIES[name].fitted == "fit" for name in policies)
    return 0.5 if fit is None and (fitted or scope is Scope.QUOTA) else fit


def _phase(phase: Phase | str) -> Phase:
    found = Phase.parse(phase) if isinstance(phase, str) else phase
    if found not in (Phase.DECODE, Phase.PREFILL):
        raise InputError("phase: decode or prefill is needed, they are timed apart")
    return found


def _served(serve: Serve, cluster: Cluster, phase: Phase) -> Serve:
    """Without a host there is no CPU to choose; asking for it by name is an error."""
    if serve is Serve.CPU:
        cluster.part("host")
        if phase is Phase.PREFILL:
            raise InputError("serve cpu: no profile states a CPU's FLOP/s, so prefill is copied")
    if serve is Serve.AUTO and (cluster.host is None or phase is Phase.PREFILL):
        return Serve.COPY
    return serve


def _context(trace: Trace, context_tokens: int | None) -> int:
    if context_tokens is None:
        return int(np.max(trace.position, initial=-1)) + 1
    if context_tokens < 0:
        raise InputError(f"context_tokens is {context_tokens}, it must be at least 0")
    return context_tokens


def _gib_more(job: Job, best: Line) -> tuple[float, int]:
    """(tokens/s more, tokens of KV) that one GiB more on each GPU gives, one or the other."""
    row, gpus = best.row, job.cluster.gpus_per_node
    faster = plan_rows(job, [row.policy], row.vram_bytes + GIB)[0].row.tok_s
    token = gpus * job.model.kv_bytes_per_token_per_rank(gpus, job.kv_dtype, job.kv_dtype)
    return faster - row.tok_s, gpus * GIB // token


def _plan(job: Job, lines: list[Line], transfer: str | None, assumptions: list[str]) -> OffloadPlan:
    best = lines[0]
    row = best.row
    gain, kv_tokens = _gib_more(job, best)
    return OffloadPlan(
        model=job.model.name,
        hardware=job.cluster.name,
        trace_model=job.recording.trace.model.name,
        transfer=transfer if job.carried else None,
        precision=job.precision.name,
        phase=job.recording.phase.name.lower(),
        scope=job.scope,
        contract=job.contract,
        serve=job.service.serve,
        policy=row.policy,
        slots=row.slots,
        tok_s=row.tok_s,
        tok_s_low=row.tok_s_low,
        tok_s_high=row.tok_s_high,
        tok_s_limit=row.tok_s_limit,
        provenance=weakest_provenance(job),
        bound=row.bound,
        share=row.share,
        gib_gain_tok_s=gain,
        gib_kv_tokens=kv_tokens,
        memory=best.memory,
        context_tokens=job.context_tokens,
        tokens=best.traffic.tokens,
        steps=len(best.traffic.step_tokens),
        fit_steps=best.traffic.fit_steps,
        sequences=best.traffic.sequences,
        rows=[line.row for line in lines],
        rates=job.rates,
        assumptions=assumptions,
        moe_layers=job.model.moe_layers,
        traffic=best.traffic,
        work=best.work,
        service=job.service,
    )
