"""Experts in host memory, computed by its CPU: what fits, and how fast one user's tokens come.

llama.cpp keeps those of whole layers there: of every layer a token reads top_k, from one memory or
the other, whichever they are. KTransformers keeps some experts of each layer on GPUs: how often a
token meets them is that of even routing, each expert as likely as the others, so an engine that
keeps the most used ones there is faster. With a recording `plan_offload` says by how much.
"""

from __future__ import annotations

from dataclasses import replace

from numpy.typing import ArrayLike

from moeprof.errors import InfeasibleError, InputError
from moeprof.offload import (
    DecodeEstimate,
    OffloadMemory,
    Rates,
    decode_work,
    estimate_decode,
    find_rates,
    plan_memory,
    product,
    spread_misses,
)
from moeprof.projection.advice.option import Option, build_option
from moeprof.projection.advice.targets import LatencyTargets
from moeprof.projection.closed_loop import Traffic
from moeprof.projection.deployment import Deployment
from moeprof.quantity import Provenance, Quantity

_LAWS = {
    "llamacpp": "whole layers on the host",
    "ktransformers": "some experts of each layer on GPUs, met as by even routing",
}


def host_option(deployment: Deployment, traffic: Traffic, ram_bytes: float) -> Option | None:
    """`deployment` for one user, as many experts on GPUs as fit; None where it does not fit, no
    host is named or the machine has one memory, and where nothing need stand on the host.
    """
    by_layers = deployment.engine == "llamacpp"
    try:
        memory = _memory(deployment, traffic, ram_bytes, by_layers)
        launches = "compiled" if by_layers else "graph"
        rates = find_rates(deployment.cluster, launches=launches)
    except (InfeasibleError, InputError):
        return None
    on_gpus = memory.used_slots / (len(deployment.model.moe_layers) * deployment.model.experts)
    if on_gpus == 1 or rates.cpu is None:
        return None
    experts, misses, weights = _events(deployment.model.top_k, on_gpus, by_layers)
    found = estimate_decode(
        decode_work(deployment.model, deployment.precision, context_tokens=_context(traffic)),
        _one_at_a_time(rates, deployment) if by_layers else rates,
        experts=experts,
        misses=misses,
        weights=weights,
        serve="cpu",
        overlap=not by_layers,
    )
    return _option(deployment, traffic, found, memory)


def _events(top_k: int, on_gpus: float, by_layers: bool) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
    """(experts, misses, weights) of the events of one token."""
    if by_layers:
        return [top_k, top_k], [0, top_k], [on_gpus, 1 - on_gpus]
    return spread_misses(top_k, on_gpus)


def _memory(
    deployment: Deployment, traffic: Traffic, ram_bytes: float, by_layers: bool
) -> OffloadMemory:
    cluster = deployment.cluster
    return plan_memory(
        deployment.model,
        cluster,
        deployment.precision,
        vram_bytes=cluster.profile.memory_visible.value,
        ram_bytes=ram_bytes,
        context_tokens=_context(traffic),
        exclusive=by_layers,
        whole_layers=by_layers,
    )


def _one_at_a_time(rates: Rates, deployment: Deployment) -> Rates:
    """Layers stand whole on one GPU or another, and a token passes one after the other."""
    share = Quantity(1 / deployment.cluster.gpus_per_node, "", Provenance.SPECIFIED)
    return replace(rates, hbm=product(rates.hbm, share))


def _option(
    deployment: Deployment,
    traffic: Traffic,
    found: DecodeEstimate,
    memory: OffloadMemory,
) -> Option:
    law = f"the law of docs/offload.md: {_LAWS[deployment.engine]}"
    model, by_layers = deployment.model, deployment.engine == "llamacpp"
    hosted = len(model.moe_layers) - memory.used_slots // model.experts
    slots = memory.used_slots // len(model.moe_layers)

    def quantity(value: float, low: float, high: float, unit: str) -> Quantity:
        return Quantity(value, unit, Provenance.ASSUMED, low, high, law)

    rate = quantity(found.tok_s, found.tok_s_low, found.tok_s_high, "tok/s")
    token = quantity(1e3 / found.tok_s, 1e3 / found.tok_s_high, 1e3 / found.tok_s_low, "ms")
    return build_option(
        deployment,
        traffic,
        (token, None, rate),
        LatencyTargets(),
        max_concurrency=1,
        limit="memory",
        familiarity="stranger",
        free_bytes=(memory.gpu.capacity_bytes or 0.0) - memory.gpu.total_bytes,
        host_layers=hosted if by_layers else 0,
        gpu_experts=None if by_layers else slots,
    )


def _context(traffic: Traffic) -> int:
    return traffic.input_len + traffic.output_len
