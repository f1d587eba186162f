"""Machines of one kind of GPU, and what else a deployment was told that they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moeprof.errors import InputError
from moeprof.hardware.profile import HardwareProfile, Kind, LinkRole
from moeprof.quantity import Quantity
from moeprof.result import Result

# What a cluster lacks, and what to write behind its name to add it.
_EXAMPLES = {
    "host": "epyc-9005-12ch-6000",
    "drive": "nvme-gen5-x4",
    "host_link": "pcie5-x16",
    "scale_up": "nvlink4",
    "network": "ib-ndr-400",
}


@dataclass(frozen=True)
class Cluster(Result):
    """`nodes` machines with `gpus_per_node` GPUs of one profile each.

    The rest is None where it was not named. `drives` counts the drives of a node, which are read
    side by side. A link that is named replaces the one in the GPU's profile.
    """

    profile: HardwareProfile
    nodes: int = 1
    gpus_per_node: int = 1
    host: HardwareProfile | None = None
    drive: HardwareProfile | None = None
    drives: int = 0
    host_link: HardwareProfile | None = None
    scale_up: HardwareProfile | None = None
    network: HardwareProfile | None = None

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.gpus_per_node < 1:
            raise InputError(f"a cluster of {self.nodes} x {self.gpus_per_node} GPUs has none")
        if self.host is not None and self.profile.kind is Kind.SOC:
            raise InputError(f"{self.profile.name} is its own host: leave out '+{self.host.name}'")

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node

    @property
    def name(self) -> str:
        """As `load_hardware` reads it: 8xh200-sxm, 2x8xb200-sxm+epyc-9005-12ch-6000."""
        nodes = f"{self.nodes}x" if self.nodes > 1 else ""
        gpus = f"{nodes}{self.gpus_per_node}x{self.profile.name}"
        return "+".join([gpus, *(f"{many(n)}{part.name}" for part, n in self.parts())])

    def parts(self) -> list[tuple[HardwareProfile, int]]:
        """What was named beside the GPUs, and how many of it a node has."""
        places = (
            (self.host, 1),
            (self.drive, self.drives),
            (self.host_link, 1),
            (self.scale_up, 1),
            (self.network, 1),
        )
        return [(part, count) for part, count in places if part is not None]

    def part(self, place: str) -> HardwareProfile:
        """The profile in `place`: host, drive, host_link, scale_up or network.

        Raises InputError with the remedy where none was named.
        """
        found: HardwareProfile | None = getattr(self, place) if place in _EXAMPLES else None
        if found is None:
            if place not in _EXAMPLES:
                raise InputError(f"a cluster has no '{place}': {', '.join(_EXAMPLES)}")
            example = f"{self.name}+{_EXAMPLES[place]}"
            raise InputError(f"{self.name}: no {place} is named; add one, such as {example}")
        return found

    @property
    def host_link_rate(self) -> Quantity:
        """Bytes/s that reach one GPU from its host: of the link that was named, or of the GPU's.

        Raises InputError where nobody stated it.
        """
        if self.host_link is not None:
            return self.host_link.figure("link_effective_bytes_per_s")
        return self.profile.figure("host_link_effective_bytes_per_s")


def many(count: int) -> str:
    """The count before a name, as one writes it: nothing for one."""
    return "" if count == 1 else f"{count}x"


def make_cluster(parts: Sequence[tuple[HardwareProfile, int]], nodes: int = 1) -> Cluster:
    """A cluster of profiles and how many of each a node has.

    Raises InputError, with the remedy, for parts that do not make a machine.
    """
    taken: dict[str, HardwareProfile] = {}
    counts: dict[str, int] = {}
    for part, count in parts:
        place = _place(part)
        if place in taken:
            both = f"'{taken[place].name}' and '{part.name}'"
            what = "GPU" if place == "profile" else place.replace("_", " ")
            raise InputError(f"{both} are both the {what} of one node: name one")
        if count != 1 and place not in ("profile", "drive"):
            raise InputError(f"'{count}x{part.name}': only GPUs and drives are counted")
        if count < 1:
            raise InputError(f"'{count}x{part.name}' has none of it: leave it out")
        taken[place], counts[place] = part, count
    if "profile" not in taken:
        names = "+".join(f"{many(count)}{part.name}" for part, count in parts)
        raise InputError(f"{names}: no GPU is named; put one before it: 4xrtx-4090+{names}")
    gpus, drives = counts["profile"], counts.get("drive", 0)
    return Cluster(**taken, nodes=nodes, gpus_per_node=gpus, drives=drives)


def _place(part: HardwareProfile) -> str:
    """The field of `Cluster` that `part` goes to."""
    if part.role is not None:
        return {
            LinkRole.HOST: "host_link",
            LinkRole.SCALE_UP: "scale_up",
            LinkRole.NETWORK: "network",
        }[part.role]
    return "profile" if part.kind in (Kind.GPU, Kind.SOC) else part.kind.value
