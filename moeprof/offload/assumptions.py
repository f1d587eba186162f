"""In sentences: what a plan rests on that nobody measured for this case."""

from __future__ import annotations

from dataclasses import fields

from moeprof.offload.memory import GIB
from moeprof.offload.rates import constant
from moeprof.offload.rows import Job, Line, mean_position
from moeprof.offload.timing import Serve
from moeprof.offload.transfer import METHODS
from moeprof.quantity import Provenance, Quantity

_SERVED = {
    Serve.COPY: "Every miss is copied over the link and then computed on the GPU.",
    Serve.CPU: "Every miss is computed by the CPU where it stands",
    Serve.AUTO: "Of each event as many misses are copied, and the others computed by the CPU, as "
    "make it shortest",
}
_LAUNCHED = {
    "graph": "a CUDA graph; --launches compiled or eager are slower",
    "compiled": "compiled code one by one, as in llama.cpp",
    "eager": "Python, as in transformers",
}


def weakest_provenance(job: Job) -> Provenance:
    """Of all that went into a plan."""
    rates = [getattr(job.rates, f.name) for f in fields(job.rates)]
    found = [rate.provenance for rate in rates if isinstance(rate, Quantity)]
    found.append(Provenance.ASSUMED if job.carried else job.precision.provenance)
    return max(found, key=lambda provenance: provenance.rank)


def state_assumptions(job: Job, best: Line, pinned: bool, launches: str) -> list[str]:
    """What the first line of a plan assumes; the sources of rates stand with the rates."""
    lines = [*_memory(job, best), *_service(job, best, pinned), *_traffic(job, best)]
    lines.append(f"Kernels are launched by {_LAUNCHED[launches]}.")
    unsure = [
        f.name
        for f in fields(job.rates)
        if getattr(getattr(job.rates, f.name), "provenance", None) is Provenance.ASSUMED
    ]
    if unsure:
        lines.append(f"Rates that are assumed, not measured: {', '.join(unsure)}.")
    return lines


def _memory(job: Job, best: Line) -> list[str]:
    reserve = constant("reserve_bytes", job.cluster.profile.name).value / GIB
    kv = f"{job.sequences:,} x {job.context_tokens:,} tokens of KV in {job.kv_dtype}"
    lines = [f"GPU memory holds {kv} and {reserve:g} GiB a GPU of reserve before any expert."]
    if job.ram_bytes is None:
        lines.append("Host memory is taken to hold all experts: state --ram to check it.")
    if job.exclusive:
        lines.append("Experts on the GPU have no copy in host memory.")
    if best.memory.reads_drive:
        lines.append(
            "Host memory is an LRU of the experts that the GPU's cache missed; it starts full."
        )
    if job.cluster.gpus_per_node > 1:
        lines.append(
            f"The {job.cluster.gpus_per_node} GPUs share weights and experts evenly and copy at "
            "the same time; what they say to each other is not counted."
        )
    return lines


def _service(job: Job, best: Line, pinned: bool) -> list[str]:
    serve, overlap, apart = job.service
    behind = ""
    if serve is not Serve.COPY:
        behind = "; what the cache admits crosses the link behind."
    lines = [_SERVED[serve] + behind]
    if job.cluster.host is None:
        lines.append("No host is named, so the CPU computes nothing: add one, +epyc-9005 say.")
    if overlap:
        lines.append(
            "No prefetch: copies start when the router has decided, beside the experts that are "
            "on the GPU and the shared expert."
        )
    else:
        lines.append("Nothing overlaps: GPU, link, CPU and drives work one after the other.")
    if not pinned:
        lines.append("Host memory is not pinned, so copies are staged.")
    if apart:
        lines.append("The matrices of an expert are copied one by one.")
    return lines


def _reading(job: Job) -> str:
    if mean_position(job.recording) is not None:
        return (
            "Attention reads the cache as far as the recording's tokens are into their requests on "
            "average."
        )
    if not job.context_tokens:
        return "The recording has no positions, so no KV is held or read: give --context."
    return "The recording has no positions, so attention reads KV of the whole context."


def _traffic(job: Job, best: Line) -> list[str]:
    traffic = best.traffic
    lines = [_reading(job)]
    if traffic.fit_steps:
        lines.append(
            f"The first {traffic.fit_steps:,} steps warm the caches and fit static lists; the "
            "later ones are timed."
        )
    else:
        lines.append("Caches start empty.")
    if job.carried:
        recorded = job.recording.trace.model.name
        lines.append(
            f"The recording is of {recorded} and carried over to {job.model.name}: "
            f"{METHODS['hit-ratio']}. Everything here is assumed."
        )
    return lines
