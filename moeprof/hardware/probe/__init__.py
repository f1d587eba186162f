"""Measure this machine into profiles: each figure with its method and its spread."""

from moeprof.hardware.probe.run import HardwareProbe, ProbedPart, probe_hardware

__all__ = ["HardwareProbe", "ProbedPart", "probe_hardware"]
