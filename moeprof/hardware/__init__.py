"""What a model runs on: devices as figures with sources, and clusters of them.

`moeprof.hardware.probe` measures this machine; it is imported where that is asked for.
"""

from moeprof.hardware.cluster import Cluster
from moeprof.hardware.figure import FIGURE_UNITS, Figure
from moeprof.hardware.listing import HardwareList, describe_hardware, list_hardware
from moeprof.hardware.loading import (
    hardware_files,
    load_hardware,
    load_profile,
    profile_names,
    read_profile,
)
from moeprof.hardware.profile import HardwareProfile, Kind, LinkRole

__all__ = [
    "FIGURE_UNITS",
    "Cluster",
    "Figure",
    "HardwareList",
    "HardwareProfile",
    "Kind",
    "LinkRole",
    "describe_hardware",
    "hardware_files",
    "list_hardware",
    "load_hardware",
    "load_profile",
    "profile_names",
    "read_profile",
]
