"""Tiles: kernels compute whole ones, so an expert with one row costs as much as with a full tile.

A rule gives (rows, columns) of the output tile that a kernel uses. The rules are those of the
engines: Triton's without a tuned configuration is vLLM's and SGLang's `get_default_config` (small
tiles while the tokens do not exceed the rank's experts); TensorRT-LLM's generated kernels take the
tile nearest to the mean rows an expert gets, and so do kernels that unpack 4-bit weights for BF16
units (Marlin); CUTLASS kernels are autotuned, and act like one tile.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moeprof.projection.moe_kernels.work import Floats, RankWork

Tile = tuple[Floats, Floats]  # rows, columns


def _cutlass(work: RankWork) -> Tile:
    return np.full(work.tokens.shape, 64.0), np.full(work.tokens.shape, 128.0)


def _generated(work: RankWork) -> Tile:
    mean = work.tokens * work.shape.top_k / work.shape.experts
    rows = np.exp2(np.ceil(np.log2(np.maximum(mean / 2, 1))))
    return np.clip(rows, 8, 64), np.full(work.tokens.shape, 128.0)


def _triton(work: RankWork) -> Tile:
    few = work.tokens <= work.rank_experts
    return np.where(few, 16.0, 64.0), np.where(few, 32.0, 64.0)


UNPACKING = "unpacking"  # any kernel that unpacks 4-bit weights: none of them is in the tables

_RULES: dict[str, Callable[[RankWork], Tile]] = {
    "vllm_unquantizedfusedmoe_triton_tritonexperts": _triton,
    "sglang_fused_moe_triton": _triton,
    "sglang_flashinfer_trtllm_moe": _generated,
    "moe_torch_flow_min_latency": _generated,
    UNPACKING: _generated,
}


def tile_of(kernel: str, work: RankWork) -> Tile:
    """Rows and columns [points] of the tiles of `kernel`; an unknown one is taken for CUTLASS."""
    return _RULES.get(kernel, _cutlass)(work)


def is_cutlass(kernel: str) -> bool:
    """Whether `kernel` is of CUTLASS, or taken for it."""
    return kernel not in _RULES


def padded_rows(work: RankWork, rows: Floats) -> Floats:
    """Rows [points] that the rank computes once each expert's are rounded up to tiles of `rows`.

    Exact only with all loads; from their mean: equal loads fill their tiles, and loads that fall
    off exponentially take mean/(1 - exp(-rows/mean)) tiles, which is within 1 % of draws from power
    laws (median). `RankWork.skew` goes from the first to the second.
    """
    mean = np.maximum(work.load / np.maximum(work.distinct, 1e-9), 1e-9)
    even = np.maximum(rows, mean)
    skewed = rows / -np.expm1(-rows / mean)
    padded: Floats = work.distinct * (even + work.skew * (skewed - even))
    return padded
