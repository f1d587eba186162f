"""What a model runs on: GPUs as figures with sources, and clusters of them."""

from moeprof.hardware.listing import HardwareList, list_hardware
from moeprof.hardware.loading import load_hardware, load_profile, profile_names, read_profile
from moeprof.hardware.profile import FIGURE_UNITS, Cluster, HardwareProfile

__all__ = [
    "FIGURE_UNITS",
    "Cluster",
    "HardwareList",
    "HardwareProfile",
    "list_hardware",
    "load_hardware",
    "load_profile",
    "profile_names",
    "read_profile",
]
