"""What `hardware list` answers."""

from __future__ import annotations

from dataclasses import dataclass

from moeprof.hardware.loading import load_profile, profile_names
from moeprof.hardware.profile import HardwareProfile
from moeprof.result import Result


@dataclass(frozen=True)
class HardwareList(Result):
    """The profiles that come with moeprof."""

    profiles: list[HardwareProfile]


def list_hardware() -> HardwareList:
    """Every profile, sorted by name."""
    return HardwareList([load_profile(name) for name in profile_names()])
