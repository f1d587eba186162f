"""What the GPUs did meanwhile: NVML samples about once a second, silently none without NVML."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from moeprof.trace import TelemetrySample

INTERVAL_SECONDS = 1.0


class TelemetrySampler:
    """Hands `put` a sample of every visible GPU at each interval, from a thread of its own.

    `clock_base` is the Unix time that samples count from. Values that a device does not give
    are None.
    """

    def __init__(
        self,
        put: Callable[[TelemetrySample], object],
        clock_base: float,
        *,
        nvml: Any = None,
        interval_s: float = INTERVAL_SECONDS,
    ) -> None:
        self._put = put
        self._clock_base = clock_base
        self._interval = interval_s
        self._stopping = threading.Event()
        self._nvml = nvml if nvml is not None else _import_nvml()
        self._thread: threading.Thread | None = None

    def start(self) -> bool:
        """Begin, if there is a GPU that NVML knows; whether there is."""
        try:
            self._nvml.nvmlInit()
            devices = range(self._nvml.nvmlDeviceGetCount())
            handles = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in devices]
        except Exception:  # no package, no driver, no permission: there is no telemetry
            return False
        self._thread = threading.Thread(
            target=self._run, args=(handles,), name="moeprof-telemetry", daemon=True
        )
        self._thread.start()
        return True

    def stop(self) -> None:
        """End the thread after its current sample."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._value(self._nvml.nvmlShutdown)

    def _run(self, handles: list[Any]) -> None:
        with contextlib.suppress(Exception):  # an NVML without some function: no more samples
            self._sample_until_stopped(handles)

    def _sample_until_stopped(self, handles: list[Any]) -> None:
        while True:
            now = time.time() - self._clock_base
            for device, handle in enumerate(handles):
                self._put(self._sample(now, device, handle))
            if self._stopping.wait(self._interval):
                return

    def _sample(self, now: float, device: int, handle: Any) -> TelemetrySample:
        nvml = self._nvml
        use = self._value(nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = self._value(nvml.nvmlDeviceGetMemoryInfo, handle)
        milliwatts = self._value(nvml.nvmlDeviceGetPowerUsage, handle)
        return TelemetrySample(
            time_s=now,
            device=device,
            gpu_utilization=None if use is None else float(use.gpu),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            power_w=None if milliwatts is None else milliwatts / 1000,
            temperature_c=self._value(nvml.nvmlDeviceGetTemperature, handle, 0),  # 0: the GPU
            sm_clock_mhz=self._value(nvml.nvmlDeviceGetClockInfo, handle, 1),  # 1: the SMs
        )

    @staticmethod
    def _value(query: Callable[..., Any], *args: Any) -> Any:
        try:
            return query(*args)
        except Exception:  # an NVML error of a type that only NVML defines: not supported here
            return None


def _import_nvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml
