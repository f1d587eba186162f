"""TFLOP/s of dense matrix products, with NumPy and with torch where it is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from moeprof.hardware.figure import Figure
from moeprof.hardware.probe.measurement import NotMeasuredError, measure, measured, rate

_TERA = 1e12
_CPU_SIZE = 2048  # rows and columns: 17 GFLOP a product
_GPU_SIZE = 8192


def find_torch() -> Any:
    """torch, or NotMeasuredError where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise NotMeasuredError("torch is not installed: pip install 'moeprof[capture]'")
    import torch

    return torch


def probe_numpy(seconds: float, size: int = _CPU_SIZE) -> dict[str, Figure]:
    """Products in fp32 on the CPU, by the BLAS that NumPy brings."""
    a = np.ones((size, size), dtype=np.float32)
    out = np.empty_like(a)
    spread = measure(rate(2 * size**3 / _TERA, lambda: np.matmul(a, a, out=out)), seconds)
    method = f"NumPy {np.__version__}, float32 product of {size} x {size} matrices"
    return {"gemm_tflops_fp32": measured("gemm_tflops_fp32", spread, method)}


def probe_torch(
    torch: Any, seconds: float, device: str = "cpu", size: int | None = None
) -> dict[str, Figure]:
    """Products in bf16 by torch on `device`."""
    size = size or (_CPU_SIZE if device == "cpu" else _GPU_SIZE)
    a = torch.ones((size, size), dtype=torch.bfloat16, device=device)
    out = torch.empty_like(a)

    def product() -> None:
        torch.mm(a, a, out=out)
        synchronize(torch, device)

    spread = measure(rate(2 * size**3 / _TERA, product), seconds)
    where = f"{torch.get_num_threads()} threads" if device == "cpu" else device
    method = f"torch {torch.__version__}, bf16 product of {size} x {size} matrices, {where}"
    return {"gemm_tflops_bf16": measured("gemm_tflops_bf16", spread, method)}


def synchronize(torch: Any, device: str) -> None:
    """Wait until `device` has done what it was told."""
    if device != "cpu":
        torch.cuda.synchronize(device)
