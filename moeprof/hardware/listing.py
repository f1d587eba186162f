"""What `hardware list` and `hardware show` answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moeprof.hardware.cluster import Cluster, make_cluster
from moeprof.hardware.loading import load_profile, profile_names, read_parts
from moeprof.hardware.profile import HardwareProfile, Kind
from moeprof.result import Result

_WITH_GPU = (Kind.GPU, Kind.SOC)


@dataclass(frozen=True)
class HardwareList(Result):
    """Profiles that make no cluster: those that ship, or a host or a drive alone."""

    profiles: list[HardwareProfile]


def list_hardware() -> HardwareList:
    """Every profile, by kind and then by name."""
    return HardwareList([load_profile(name) for kind in Kind for name in profile_names(kind)])


def describe_hardware(hardware: str | Path) -> Cluster | HardwareList:
    """A cluster as `load_hardware` reads it, or the profiles that were named if none is a GPU.

    Raises InputError as `load_hardware` does.
    """
    parts, nodes = read_parts(hardware)
    if any(part.kind in _WITH_GPU for part, _ in parts):
        return make_cluster(parts, nodes)
    return HardwareList([part for part, _ in parts])
