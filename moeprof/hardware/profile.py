"""One device as figures, each with its unit, its source and where it comes from.

A figure that nobody published is absent, and asking for it raises: nothing is filled in from a
similar chip. The figures of the devices that ship stand in `profiles/`, none in code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from moeprof.errors import InputError
from moeprof.hardware.figure import FIGURE_UNITS, Figure
from moeprof.quantity import Quantity
from moeprof.result import Result


class Kind(StrEnum):
    """What a device is, and so which place of a cluster it can take."""

    GPU = "gpu"
    SOC = "soc"  # GPU and host in one, with one memory
    HOST = "host"  # CPU sockets with their memory, by the modules in it
    LINK = "link"
    DRIVE = "drive"


class LinkRole(StrEnum):
    """What a link joins."""

    HOST = "host"  # a GPU and its host
    SCALE_UP = "scale-up"  # the GPUs of a node
    NETWORK = "network"  # nodes


@dataclass(frozen=True)
class HardwareProfile(Result):
    """A device. `scale_up_link` and `host_link` name the links that a GPU's figures are about."""

    name: str
    title: str
    vendor: str
    figures: Mapping[str, Figure] = field(hash=False)
    scale_up_link: str = ""
    host_link: str = ""
    aliases: tuple[str, ...] = ()
    kind: Kind = Kind.GPU
    role: LinkRole | None = None  # of a link

    def __post_init__(self) -> None:
        if (self.role is None) == (self.kind is Kind.LINK):
            roles = ", ".join(LinkRole)
            raise InputError(f"{self.name}: role: a link has one of {roles}, others have none")
        for name, figure in self.figures.items():
            unit = FIGURE_UNITS.get(name)
            if unit is None:
                raise InputError(f"{self.name}: no figure is called '{name}': {[*FIGURE_UNITS]}")
            if figure.unit != unit:
                raise InputError(f"{self.name}: {name} must be in {unit}, not in {figure.unit}")

    def figure(self, name: str) -> Quantity:
        """The figure called `name` (a key of `FIGURE_UNITS`), as calculations take it.

        Raises InputError where this profile has none: it is never taken from another device.
        """
        if name in self.figures:
            return self.figures[name].quantity
        if name not in FIGURE_UNITS:
            raise InputError(f"no hardware figure is called '{name}': {', '.join(FIGURE_UNITS)}")
        raise InputError(
            f"{self.name}: {name} is not known; state it with its source in a profile of your own, "
            "or measure it there: moeprof hardware probe"
        )

    @property
    def memory_bytes(self) -> Quantity:
        """Memory of one device, as its datasheet counts (GB of 10^9 bytes)."""
        return self.figure("memory_bytes")

    @property
    def memory_visible(self) -> Quantity:
        """Memory that programs are offered: what the driver prints, or of one memory that GPU and
        host share the part that the GPU may use. The datasheet's where nobody stated it."""
        known = "memory_visible_bytes" in self.figures
        return self.figure("memory_visible_bytes") if known else self.memory_bytes

    @property
    def memory_bandwidth(self) -> Quantity:
        """Peak bytes/s between one device and its memory."""
        return self.figure("memory_bandwidth_bytes_per_s")

    def dense_tflops(self, dtype: str) -> Quantity:
        """Peak TFLOP/s of dense matrix products in bf16, fp8 or fp4."""
        return self.figure(f"dense_tflops_{dtype}")
