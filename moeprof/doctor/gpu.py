"""GPUs and their driver, by NVML."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

from moeprof.doctor.check import Check


def check_gpus(nvml: Any = None) -> Check:
    """What NVML shows. Without a GPU everything works but what needs one; that is no fault."""
    try:
        if nvml is None:
            nvml = import_module("pynvml")
        nvml.nvmlInit()
        try:
            return Check("gpu", True, _describe(nvml))
        finally:
            nvml.nvmlShutdown()
    except Exception as error:  # no library, no driver, no permission: each says so
        devices = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
        if devices:
            detail = f"{', '.join(devices)} here, but NVML says: {error}"
            return Check("gpu", False, detail, remedy="compare driver and library: nvidia-smi")
        return Check("gpu", True, f"none seen (NVML: {error}); engines run on the CPU")


def _describe(nvml: Any) -> str:
    handles = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
    names = Counter(_text(nvml.nvmlDeviceGetName(handle)) for handle in handles)
    kinds = ", ".join(f"{count} x {name}" for name, count in names.items()) or "no GPU"
    return f"{kinds}, driver {_text(nvml.nvmlSystemGetDriverVersion())}"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
