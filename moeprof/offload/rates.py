"""How fast bytes move and what launches cost: a machine's figures times the constants of the law.

All constants stand in `rates.toml` beside this file, each with band, provenance and source; fitting
them to measurements means replacing values there and nothing else.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from moeprof.errors import InputError
from moeprof.hardware import Cluster, Kind
from moeprof.quantity import Provenance, Quantity
from moeprof.result import Result

# Who launches a layer's kernels: the constant of what that costs.
LAUNCHES = {
    "graph": "layer_s",  # a CUDA graph
    "compiled": "compiled_layer_s",  # compiled code, one by one (llama.cpp)
    "eager": "eager_layer_s",  # Python (transformers, and what grew from it)
}


class Speeds(NamedTuple):
    """Rates as plain numbers, at one end of their bands or in the middle."""

    hbm: float  # bytes/s
    link: float  # bytes/s from the host to the GPUs
    cpu: float | None  # bytes/s of experts that the CPU computes
    drive: float | None  # bytes/s
    copy_latency_s: float  # each copy over the link
    drive_latency_s: float  # each round of reads
    drive_queue_depth: float  # reads of a round
    kernel_s: float  # routed experts' kernels, each MoE layer
    layer_s: float  # all other launches, each layer
    cpu_layer_s: float  # each event that the CPU takes part in
    step_s: float  # the host's part of a step
    flops: float | None = None  # FLOP/s of the GPUs; None: arithmetic takes no time


@dataclass(frozen=True)
class Rates(Result):
    """The rates of one machine, each with band and provenance. None: it has no such part."""

    hbm: Quantity
    link: Quantity
    cpu: Quantity | None
    drive: Quantity | None
    copy_latency_s: Quantity
    drive_latency_s: Quantity
    drive_queue_depth: Quantity
    kernel_s: Quantity
    layer_s: Quantity
    cpu_layer_s: Quantity
    step_s: Quantity
    flops: Quantity | None = None

    def at(self, end: str) -> Speeds:
        """The rates at end "slow", "middle" or "fast" of their bands, all of them together.

        A rate whose band nobody knows takes its value at either end.
        """
        if end not in ("slow", "middle", "fast"):
            raise InputError(f"end '{end}' is not one of slow, middle, fast")
        return Speeds(*(_end(getattr(self, name), name, end) for name in Speeds._fields))


def find_rates(cluster: Cluster, *, pinned: bool = True, launches: str = "graph") -> Rates:
    """The rates of `cluster`'s first node, all its GPUs together; `launches` is one of `LAUNCHES`.

    Raises InputError for another word, where the GPU shares its memory with the host, or where a
    figure is missing.
    """
    if launches not in LAUNCHES:
        raise InputError(f"launches '{launches}' is not one of {', '.join(LAUNCHES)}")
    gpu, count = cluster.profile, _exactly(cluster.gpus_per_node)
    if gpu.kind is Kind.SOC:
        raise InputError(f"{gpu.name} has one memory: no expert is offloaded from it")
    link = product(cluster.host_link_rate, constant("link_efficiency", gpu.name), count)
    if not pinned:
        link = product(link, constant("pageable_efficiency", gpu.name))
    cpu = drive = None
    if cluster.host is not None:
        host = cluster.host
        reached = host.figure("memory_bandwidth_effective_bytes_per_s")
        link = _slower(link, reached)
        cpu = product(reached, constant("cpu_efficiency", host.name))
    if cluster.drive is not None:
        read = cluster.drive.figure("read_bytes_per_s")
        ratio = constant("drive_efficiency", cluster.drive.name)
        drive = product(read, ratio, _exactly(cluster.drives))
    return Rates(
        hbm=product(gpu.memory_bandwidth, constant("hbm_efficiency", gpu.name), count),
        link=link,
        cpu=cpu,
        drive=drive,
        flops=_flops(cluster),
        drive_latency_s=_exactly(0, "s") if cluster.drive is None else _latency(cluster),
        layer_s=constant(LAUNCHES[launches], gpu.name),
        **{name: constant(name, gpu.name) for name in _CONSTANTS},
    )


_CONSTANTS = (
    "copy_latency_s",
    "drive_queue_depth",
    "kernel_s",
    "cpu_layer_s",
    "step_s",
)
_LARGE_IS_FAST = ("hbm", "link", "cpu", "drive", "drive_queue_depth", "flops")


def _slower(rate: Quantity, limit: Quantity) -> Quantity:
    """`rate`, but never above `limit`: several links read one memory."""
    if limit.value >= rate.value:
        return rate
    low, high = (_end(rate, "link", end) for end in ("slow", "fast"))
    least, most = (_end(limit, "link", end) for end in ("slow", "fast"))
    source = f"{limit.source}, which the links share"
    provenance = max(rate.provenance, limit.provenance, key=lambda p: p.rank)
    return Quantity(
        limit.value,
        rate.unit,
        provenance,
        min(low, least),
        min(max(high, limit.value), most),
        source,
    )


def _flops(cluster: Cluster) -> Quantity | None:
    """BF16, whatever the weights are stored in; None where nobody stated the peak."""
    gpu = cluster.profile
    if "dense_tflops_bf16" not in gpu.figures:
        return None
    peak = gpu.dense_tflops("bf16")
    scale = _exactly(1e12 * cluster.gpus_per_node)
    reached = product(peak, constant("gemm_efficiency", gpu.name), scale)
    return replace(reached, unit="FLOP/s")


def constant(name: str, device: str = "") -> Quantity:
    """The constant `name` of `rates.toml`, for the profile `device` where it has its own."""
    entries = [entry for entry in _table() if entry["name"] == name]
    own = [entry for entry in entries if device in entry.get("devices", ())]
    rest = [entry for entry in entries if "devices" not in entry]
    if not own + rest:
        raise InputError(f"no constant of offload is called '{name}'")
    entry = (own + rest)[0]
    return Quantity(
        entry["value"],
        entry["unit"],
        Provenance(entry["provenance"]),
        entry["low"],
        entry["high"],
        entry["source"],
    )


def product(rate: Quantity, *factors: Quantity) -> Quantity:
    """`rate` times plain numbers: bands multiply, an unknown one counts as exact, the weakest
    provenance wins. All are positive.
    """
    terms = [rate, *factors]
    value = low = high = 1.0
    for term in terms:
        value *= term.value
        low *= term.value if term.low is None else term.low
        high *= term.value if term.high is None else term.high
    provenance = max((term.provenance for term in terms), key=lambda p: p.rank)
    source = "; ".join(dict.fromkeys(term.source for term in terms if term.source))
    return Quantity(value, rate.unit, provenance, low, high, source)


def _end(rate: Quantity | None, name: str, end: str) -> Any:
    if rate is None:
        return None
    wanted = rate.low if (end == "slow") == (name in _LARGE_IS_FAST) else rate.high
    return rate.value if end == "middle" or wanted is None else wanted


def _exactly(value: float, unit: str = "1") -> Quantity:
    return Quantity(value, unit, Provenance.SPECIFIED)


def _latency(cluster: Cluster) -> Quantity:
    return cluster.part("drive").figure("latency_s")


@cache
def _table() -> list[dict[str, Any]]:
    text = files("moeprof.offload").joinpath("rates.toml").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = tomllib.loads(text)["rate"]
    return entries
