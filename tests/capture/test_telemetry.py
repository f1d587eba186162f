"""NVML samples from a driver that is played."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from moeprof.capture.telemetry import TelemetrySampler
from moeprof.trace import TelemetrySample


class PlayedNvml:
    """Two GPUs, the second of which does not tell its power."""

    def __init__(self) -> None:
        self.running = False

    def nvmlInit(self) -> None:
        self.running = True

    def nvmlShutdown(self) -> None:
        self.running = False

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=50 + handle, memory=1)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(used=3 << 30, total=80 << 30)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle == 1:
            raise RuntimeError("Not Supported")
        return 412_500

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 61

    def nvmlDeviceGetClockInfo(self, handle: int, clock: int) -> int:
        return 1980 if clock == 1 else 0


def test_samples_have_units_and_say_what_is_unknown() -> None:
    samples: list[TelemetrySample] = []
    enough = threading.Event()

    def put(sample: TelemetrySample) -> None:
        samples.append(sample)
        if len(samples) >= 4:
            enough.set()

    nvml = PlayedNvml()
    sampler = TelemetrySampler(put, clock_base=0.0, nvml=nvml, interval_s=0.01)
    assert sampler.start() and enough.wait(10)
    sampler.stop()
    first, second = samples[:2]
    assert (first.device, first.power_w, first.gpu_utilization) == (0, 412.5, 50.0)
    assert (first.memory_used_bytes, first.memory_total_bytes) == (3 << 30, 80 << 30)
    assert (first.temperature_c, first.sm_clock_mhz) == (61, 1980)
    assert (second.device, second.power_w) == (1, None)
    assert samples[2].time_s >= first.time_s > 1e9
    assert not nvml.running


def test_without_a_driver_there_is_none() -> None:
    class NoDriver:
        def nvmlInit(self) -> None:
            raise RuntimeError("Driver Not Loaded")

    sampler = TelemetrySampler(lambda sample: None, 0.0, nvml=NoDriver())
    assert not sampler.start()
    sampler.stop()
