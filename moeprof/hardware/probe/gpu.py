"""The GPUs of this machine: names and limits by NVML, rates by torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moeprof.hardware.figure import Figure
from moeprof.hardware.probe.measurement import NotMeasuredError, measure, measured, rate, reported
from moeprof.hardware.probe.products import find_torch, synchronize

_COPY_BYTES = 256 << 20
# GB/s of one lane and direction, by generation of PCIe, after its coding.
_LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}


@dataclass(frozen=True)
class FoundGpu:
    """One kind of GPU that the driver shows, how many of it, and what the driver says of it."""

    name: str
    count: int
    figures: dict[str, Figure]
    host_link: str = ""


def find_gpus() -> list[FoundGpu]:
    """By NVML, or by torch where there is none, as with AMD's GPUs.

    Raises NotMeasuredError where both find nothing; it says what NVML said.
    """
    try:
        return _by_nvml()
    except NotMeasuredError as error:
        try:
            return _by_torch(find_torch())
        except NotMeasuredError:
            raise error from None


def _by_torch(torch: Any) -> list[FoundGpu]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = []
    for index in range(count):
        total = torch.cuda.get_device_properties(index).total_memory
        figures = {"memory_bytes": reported("memory_bytes", total, "torch, total memory")}
        found.append(FoundGpu(torch.cuda.get_device_name(index), 1, figures))
    return group_gpus(found)


def _by_nvml() -> list[FoundGpu]:
    try:
        import pynvml
    except ImportError:
        raise NotMeasuredError("NVML: pip install nvidia-ml-py") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NotMeasuredError(f"NVML: {error}") from None
    try:
        return group_gpus([_describe(pynvml, i) for i in range(pynvml.nvmlDeviceGetCount())])
    except pynvml.NVMLError as error:
        raise NotMeasuredError(f"NVML: {error}") from None
    finally:
        pynvml.nvmlShutdown()


def group_gpus(found: list[FoundGpu]) -> list[FoundGpu]:
    """One of each name, counted. Raises NotMeasuredError for none."""
    if not found:
        raise NotMeasuredError("no GPU")
    names = [gpu.name for gpu in found]
    first = {gpu.name: gpu for gpu in reversed(found)}
    return [
        FoundGpu(name, names.count(name), first[name].figures, first[name].host_link)
        for name in dict.fromkeys(names)
    ]


def _describe(pynvml: Any, index: int) -> FoundGpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    name = pynvml.nvmlDeviceGetName(handle)
    figures = {}
    link = ""
    if memory := _asked(pynvml, "GetMemoryInfo", handle):
        figures["memory_bytes"] = reported("memory_bytes", memory.total, "NVML, total memory")
    if power := _asked(pynvml, "GetPowerManagementLimit", handle):
        figures["power_w"] = reported("power_w", power / 1e3, "NVML, power limit in force")
    clock = _asked(pynvml, "GetMaxClockInfo", handle, getattr(pynvml, "NVML_CLOCK_MEM", 2))
    width = _asked(pynvml, "GetMemoryBusWidth", handle)
    if clock and width:
        key = "memory_bandwidth_bytes_per_s"
        source = f"NVML: {width} bits x {clock} MHz x 2"
        figures[key] = reported(key, width / 8 * clock * 1e6 * 2, source)
    lanes = _asked(pynvml, "GetMaxPcieLinkWidth", handle)
    generation = _asked(pynvml, "GetMaxPcieLinkGeneration", handle)
    if lanes and generation in _LANE_BYTES_PER_S:
        link = f"PCIe {generation}.0 x{lanes}"
        key = "host_link_bytes_per_s"
        figures[key] = reported(key, lanes * _LANE_BYTES_PER_S[generation], f"NVML: {link}")
    return FoundGpu(name.decode() if isinstance(name, bytes) else name, 1, figures, link)


def _asked(pynvml: Any, what: str, *arguments: Any) -> Any:
    """NVML's answer, None where this GPU or this NVML has none."""
    function = getattr(pynvml, f"nvmlDevice{what}", None)
    try:
        return None if function is None else function(*arguments)
    except pynvml.NVMLError:
        return None


def torch_device(torch: Any, name: str) -> str:
    """The first device of that name. Raises NotMeasuredError where torch sees none."""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if torch.cuda.get_device_name(index) == name:
                return f"cuda:{index}"
    raise NotMeasuredError(f"torch {torch.__version__} sees no {name}")


def probe_copies(
    torch: Any, seconds: float, device: str, copy_bytes: int = _COPY_BYTES
) -> dict[str, Figure]:
    """Copies within the GPU, and one way each between it and pinned memory of its host."""
    there = torch.zeros(copy_bytes, dtype=torch.uint8, device=device)
    also_there = torch.empty_like(there)
    here = torch.zeros(copy_bytes, dtype=torch.uint8, pin_memory=device != "cpu")
    figures = {}
    for key, target, source, work, what in (
        (
            "memory_bandwidth_effective_bytes_per_s",
            also_there,
            there,
            2 * copy_bytes,
            "within the GPU, read and write counted",
        ),
        ("host_link_effective_bytes_per_s", there, here, copy_bytes, "from pinned memory"),
        ("device_to_host_bytes_per_s", here, there, copy_bytes, "to pinned memory"),
    ):

        def copy(target: Any = target, source: Any = source) -> None:
            target.copy_(source, non_blocking=True)
            synchronize(torch, device)

        method = f"torch {torch.__version__}, copies of {copy_bytes >> 20} MiB {what}"
        figures[key] = measured(key, measure(rate(work, copy), seconds), method)
    return figures
