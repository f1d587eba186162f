"""One GPU as figures, each with its unit, its source and where it comes from.

A figure that nobody published is absent, and asking for it raises: nothing is filled in from a
similar chip. The figures of the GPUs that ship stand in `profiles/*.toml`, none in code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moeprof.errors import InputError
from moeprof.quantity import Quantity
from moeprof.result import Result

# Every figure a profile may hold, and its unit. Bandwidths of links are one way.
FIGURE_UNITS = {
    "memory_bytes": "bytes",
    "memory_bandwidth_bytes_per_s": "bytes/s",
    "dense_tflops_bf16": "TFLOP/s",
    "dense_tflops_fp8": "TFLOP/s",
    "dense_tflops_fp4": "TFLOP/s",
    "scale_up_bytes_per_s": "bytes/s",
    "scale_up_gpus": "GPUs",
    "host_link_bytes_per_s": "bytes/s",
    "host_link_effective_bytes_per_s": "bytes/s",
    "power_w": "W",
    "price_usd_per_gpu_hour": "USD/h",
}


@dataclass(frozen=True)
class HardwareProfile(Result):
    """A GPU. `scale_up_link` and `host_link` name the links that the figures are about."""

    name: str
    title: str
    vendor: str
    figures: Mapping[str, Quantity] = field(hash=False)
    scale_up_link: str = ""
    host_link: str = ""
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, figure in self.figures.items():
            unit = FIGURE_UNITS.get(name)
            if unit is None:
                raise InputError(f"{self.name}: no figure is called '{name}': {[*FIGURE_UNITS]}")
            if figure.unit != unit:
                raise InputError(f"{self.name}: {name} must be in {unit}, not in {figure.unit}")

    def figure(self, name: str) -> Quantity:
        """The figure called `name` (a key of `FIGURE_UNITS`).

        Raises InputError where this profile has none: it is never taken from another GPU.
        """
        if name in self.figures:
            return self.figures[name]
        if name not in FIGURE_UNITS:
            raise InputError(f"no hardware figure is called '{name}': {', '.join(FIGURE_UNITS)}")
        raise InputError(
            f"{self.name}: {name} is not known; state it with its source in a profile of your own"
        )

    @property
    def memory_bytes(self) -> Quantity:
        """Memory of one GPU, as its datasheet counts (GB of 10^9 bytes)."""
        return self.figure("memory_bytes")

    @property
    def memory_bandwidth(self) -> Quantity:
        """Peak bytes/s between one GPU and its memory."""
        return self.figure("memory_bandwidth_bytes_per_s")

    def dense_tflops(self, dtype: str) -> Quantity:
        """Peak TFLOP/s of dense matrix products in bf16, fp8 or fp4."""
        return self.figure(f"dense_tflops_{dtype}")


@dataclass(frozen=True)
class Cluster(Result):
    """`nodes` machines with `gpus_per_node` GPUs of one profile each."""

    profile: HardwareProfile
    nodes: int = 1
    gpus_per_node: int = 1

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.gpus_per_node < 1:
            raise InputError(f"a cluster of {self.nodes} x {self.gpus_per_node} GPUs has none")

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node

    @property
    def name(self) -> str:
        """As `load_hardware` reads it: 8xh200-sxm, 2x8xb200-sxm."""
        nodes = f"{self.nodes}x" if self.nodes > 1 else ""
        return f"{nodes}{self.gpus_per_node}x{self.profile.name}"
