"""One number of a profile: a quantity, whether it was checked, and how it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from moeprof.quantity import Quantity

_DTYPES = ("fp32", "fp16", "bf16", "fp8", "fp4")

# Every figure a profile may hold, and its unit. Rates of links are one way; "effective" is what a
# program reaches, the figure without that word what the specification allows.
FIGURE_UNITS: Mapping[str, str] = MappingProxyType(
    {
        "memory_bytes": "bytes",
        "memory_visible_bytes": "bytes",
        "memory_max_bytes": "bytes",
        "memory_channels": "channels",
        "memory_transfers_per_s": "transfers/s",
        "memory_bandwidth_bytes_per_s": "bytes/s",
        "memory_bandwidth_effective_bytes_per_s": "bytes/s",
        "memory_read_bytes_per_s": "bytes/s",
        **{f"dense_tflops_{dtype}": "TFLOP/s" for dtype in _DTYPES},
        **{f"gemm_tflops_{dtype}": "TFLOP/s" for dtype in _DTYPES},
        "scale_up_bytes_per_s": "bytes/s",
        "scale_up_gpus": "GPUs",
        "all_to_all_bytes_per_s": "bytes/s",
        "all_reduce_bytes_per_s": "bytes/s",
        "all_reduce_16k_s": "s",
        "host_link_bytes_per_s": "bytes/s",
        "host_link_effective_bytes_per_s": "bytes/s",
        "device_to_host_bytes_per_s": "bytes/s",
        "link_bytes_per_s": "bytes/s",
        "link_effective_bytes_per_s": "bytes/s",
        "read_bytes_per_s": "bytes/s",
        "random_reads_per_s": "reads/s",
        "latency_s": "s",
        "power_w": "W",
        "price_usd": "USD",
        "price_usd_per_gpu_hour": "USD/h",
    }
)


@dataclass(frozen=True)
class Figure(Quantity):
    """A quantity of a profile.

    `verified` says that the number was compared with its source by whoever wrote it down; `method`
    how a measurement was made, and `by_threads` its (threads, value) pairs, where it was repeated.
    """

    verified: bool = False
    method: str = ""
    by_threads: tuple[tuple[int, float], ...] = ()

    @property
    def quantity(self) -> Quantity:
        """The number as calculations take it, without the history of its measurement."""
        return Quantity(self.value, self.unit, self.provenance, self.low, self.high, self.source)
