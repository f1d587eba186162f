"""What a model runs on: devices as figures with sources, clusters of them, and a probe."""

from moeprof.hardware.cluster import Cluster
from moeprof.hardware.figure import FIGURE_UNITS, Figure
from moeprof.hardware.listing import HardwareList, describe_hardware, list_hardware
from moeprof.hardware.loading import load_hardware, load_profile, profile_names, read_profile
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
    "list_hardware",
    "load_hardware",
    "load_profile",
    "profile_names",
    "read_profile",
]
