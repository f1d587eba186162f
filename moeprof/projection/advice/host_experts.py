"""llama.cpp with the experts of whole layers in host memory: what fits, and how fast it decodes.

Which experts a token chooses does not matter then: of every layer it reads top_k, from GPU memory
or from the host's. So no recording is needed, and none makes it better.
"""

from __future__ import annotations

from dataclasses import replace

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
)
from moeprof.projection.advice.option import Option, build_option
from moeprof.projection.advice.targets import LatencyTargets
from moeprof.projection.closed_loop import Traffic
from moeprof.projection.deployment import Deployment
from moeprof.quantity import Provenance, Quantity

_LAW = "the law of docs/offload.md, whole layers, experts on the host computed by its CPU"


def host_option(deployment: Deployment, traffic: Traffic, ram_bytes: float) -> Option | None:
    """`deployment` for one user, as many layers' experts on GPUs as fit; None where it does not
    fit, no host is named or the machine has one memory, and where nothing need stand on the host.
    """
    try:
        memory = _memory(deployment, traffic, ram_bytes)
        rates = _one_at_a_time(find_rates(deployment.cluster, launches="compiled"), deployment)
    except (InfeasibleError, InputError):
        return None
    model = deployment.model
    layers = len(model.moe_layers)
    hosted = layers - memory.used_slots // model.experts
    if not hosted or rates.cpu is None:
        return None
    found = estimate_decode(
        decode_work(model, deployment.precision, context_tokens=_context(traffic)),
        rates,
        experts=[model.top_k] * 2,
        misses=[0, model.top_k],
        weights=[layers - hosted, hosted],
        serve="cpu",
        overlap=False,
    )
    return _option(deployment, traffic, found, memory, hosted)


def _memory(deployment: Deployment, traffic: Traffic, ram_bytes: float) -> OffloadMemory:
    cluster = deployment.cluster
    return plan_memory(
        deployment.model,
        cluster,
        deployment.precision,
        vram_bytes=cluster.profile.memory_visible.value,
        ram_bytes=ram_bytes,
        context_tokens=_context(traffic),
        exclusive=True,
        whole_layers=True,
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
    hosted: int,
) -> Option:
    def quantity(value: float, low: float, high: float, unit: str) -> Quantity:
        return Quantity(value, unit, Provenance.ASSUMED, low, high, _LAW)

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
        host_layers=hosted,
    )


def _context(traffic: Traffic) -> int:
    return traffic.input_len + traffic.output_len
