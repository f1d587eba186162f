"""What the datasheet of a machine allows: bytes/s of memory and links, FLOP/s by format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moeprof.errors import InputError
from moeprof.hardware import Cluster, HardwareProfile
from moeprof.model import weight_format

# Where nobody measured a small all-reduce: as on H200 and B200 over NVLink, as on RTX PRO 6000 over
# PCIe (profiles of those GPUs), and a round of a network between nodes.
_FAST_LINK = 200e9
_REDUCE_LATENCY_S = {"fast": 7e-6, "slow": 30e-6, "network": 40e-6}
# Bytes of the message over its time, as a share of the link: NVLink4 and 5 in NCCL's tables (0.45
# to 0.58), and an exchange among all (0.72 to 0.8).
_REDUCE_SHARE, _EXCHANGE_SHARE = 0.5, 0.75
# A machine that states no FLOP/s (Apple) is taken to be bound by its memory up to this many
# operations a byte, the ratio of the GPUs that state both.
_FLOP_PER_BYTE = 50.0


@dataclass(frozen=True)
class Peaks:
    """Of one GPU and its links, bytes/s one way and FLOP/s by format of the operands."""

    memory: float
    flops: Mapping[str, float] = field(hash=False)
    reduce: float  # bytes of an all-reduce's message a second
    exchange: float  # bytes of an all-to-all's message a second
    reduce_latency_s: float


def peaks_of(cluster: Cluster, ranks: int) -> Peaks:
    """The peaks that `ranks` ranks of `cluster` see.

    Raises InputError where the profile states no bandwidth, or no network joins the nodes.
    """
    gpu = cluster.profile
    reduce, exchange, latency = _links(cluster, ranks)
    return Peaks(
        memory=gpu.memory_bandwidth.value,
        flops={dtype: peak_flops(gpu, dtype) for dtype in ("bf16", "fp8", "fp4")},
        reduce=reduce,
        exchange=exchange,
        reduce_latency_s=latency,
    )


def peak_flops(gpu: HardwareProfile, weights: str) -> float:
    """FLOP/s of products with weights in a format, or in "fp4".

    A format that the GPU does not multiply is unpacked to the next wider one that it does.
    """
    for dtype in _computed_in(weights):
        if f"dense_tflops_{dtype}" in gpu.figures:
            return gpu.dense_tflops(dtype).value * 1e12
    return gpu.memory_bandwidth.value * _FLOP_PER_BYTE


def _computed_in(weights: str) -> tuple[str, ...]:
    if weights in ("fp4", "nvfp4", "mxfp4"):
        return ("fp4", "bf16", "fp16")
    if weight_format(weights).name in ("fp8", "fp8_block", "mxfp8"):
        return ("fp8", "bf16", "fp16")
    return ("bf16", "fp16")


def _links(cluster: Cluster, ranks: int) -> tuple[float, float, float]:
    """(bytes/s of an all-reduce, of an all-to-all, seconds of a small all-reduce)."""
    gpu = cluster.profile
    if ranks == 1:
        return 1.0, 1.0, 0.0
    if ranks > cluster.gpus_per_node and ranks > _figure(gpu, "scale_up_gpus", 1):
        rate = cluster.part("network").figure("link_effective_bytes_per_s").value
        return rate * _REDUCE_SHARE, rate, _REDUCE_LATENCY_S["network"]
    link = _link(cluster)
    latency = _REDUCE_LATENCY_S["fast" if link >= _FAST_LINK else "slow"]
    return (
        _figure(gpu, "all_reduce_bytes_per_s", link * _REDUCE_SHARE),
        _figure(gpu, "all_to_all_bytes_per_s", link * _EXCHANGE_SHARE),
        _figure(gpu, "all_reduce_16k_s", latency),
    )


def _link(cluster: Cluster) -> float:
    if cluster.scale_up is not None:
        return cluster.scale_up.figure("link_effective_bytes_per_s").value
    for name in ("scale_up_bytes_per_s", "host_link_effective_bytes_per_s"):
        if name in cluster.profile.figures:
            return cluster.profile.figure(name).value
    raise InputError(f"{cluster.name}: no link joins its GPUs; name one: {cluster.name}+pcie5-x16")


def _figure(gpu: HardwareProfile, name: str, otherwise: float) -> float:
    return gpu.figure(name).value if name in gpu.figures else otherwise
