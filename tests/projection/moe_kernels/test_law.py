"""The law against a slow count of tiles and bytes, and what must hold of it everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.projection.moe_kernels import M3_SHAPE, ExpertShape, moe_kernel_seconds
from moeprof.projection.moe_kernels.groups import kernel_groups, peaks_of
from moeprof.projection.moe_kernels.law import LawConstants, Peaks, law_seconds, roofline_seconds
from moeprof.projection.moe_kernels.tiles import padded_rows, tile_of
from moeprof.projection.moe_kernels.work import RankWork

SMALL = ExpertShape(hidden=256, intermediate=512, experts=16, top_k=2)
FORMS = ("bf16", "nvfp4")


def test_law_by_hand() -> None:
    constants = LawConstants(
        launch_s=7e-6, bandwidth_share=0.5, compute_share=0.25, tile_s=1e-8, passes=3, blocks=8
    )
    peaks = Peaks(bytes_per_s=1e12, flop_per_s=1e14, weight_bytes=2)
    # 6 experts with 20 rows each: one tile of 64 rows, 2 + 2 column tiles at TP 4
    work = RankWork.of(SMALL, 60, 6, 120, tp=4, busiest=20)
    expected = 7e-6
    for outputs, inputs in ((2 * 128, 256), (256, 128)):
        filled = 6 * 2 / 8
        reading = 6 * outputs * inputs * 2 / (0.5 * 1e12)
        expected += reading * (1 + filled**-4) ** 0.25
        expected += 6 * 64 * 2 * outputs * inputs / (0.25 * 1e14)
        expected += 6 * 2 * 1e-8
    expected += 3 * (2 * 60 + 4 * 120) * 256 * 2 / 1e12
    assert law_seconds("a CUTLASS kernel", constants, peaks, work) == pytest.approx(expected)


@given(mean=st.floats(1, 300), rows=st.sampled_from([8, 16, 64, 128]))
def test_padding_is_that_of_exponential_loads(mean: float, rows: int) -> None:
    quantiles = [(place + 0.5) / 1000 for place in range(1000)]
    counted = sum(math.ceil(-mean * math.log(1 - q) / rows) * rows for q in quantiles)
    work = RankWork.of(M3_SHAPE, 1e6, 100, 100 * mean)
    assert padded_rows(work, np.float64(rows)) * 10 == pytest.approx(counted, rel=0.03)


def test_equal_loads_fill_their_tiles() -> None:
    work = RankWork.of(M3_SHAPE, 4096, 128, 128 * 96, busiest=96)
    assert padded_rows(work, np.float64(64)) == 128 * 96
    work = RankWork.of(M3_SHAPE, 320, 128, 128 * 10, busiest=10)
    assert padded_rows(work, np.float64(64)) == 128 * 64


def test_tiles_follow_the_engines_rules() -> None:
    work = RankWork.of(M3_SHAPE, [128, 129], [100, 100], [512, 516])
    rows, columns = tile_of("sglang_fused_moe_triton", work)
    assert rows.tolist() == [16, 64] and columns.tolist() == [32, 64]
    work = RankWork.of(M3_SHAPE, [1, 640, 64000], [1, 100, 128], [1, 400, 4000])
    assert tile_of("moe_torch_flow_min_latency", work)[0].tolist() == [8, 16, 64]


@given(
    group=st.sampled_from(range(31)),
    tokens=st.integers(1, 20_000),
    share=st.floats(0.05, 1),
    more=st.floats(1, 2),
)
def test_more_experts_and_more_rows_never_take_less(
    group: int, tokens: int, share: float, more: float
) -> None:
    kernel = kernel_groups()[group]
    peaks = peaks_of(kernel.hardware, kernel.dtype)
    load = tokens * 4 / more
    distinct = max(min(load, 128) * share / more, 0.1)

    def seconds(distinct: float, load: float) -> float:
        work = RankWork.of(M3_SHAPE, tokens, distinct, load)
        return float(law_seconds(kernel.kernel, kernel.constants, peaks, work))

    base = seconds(distinct, load)
    assert seconds(distinct * more, max(load, distinct * more)) >= base * (1 - 1e-9)
    assert seconds(distinct, load * more) >= base * (1 - 1e-9)


@given(
    hardware=st.sampled_from(["b200", "h100", "l40s", "rtx-5090", "mi300x"]),
    dtype=st.sampled_from(["bf16", "nvfp4", "fp8", "q4_k"]),
    tokens=st.integers(1, 100_000),
    tp=st.sampled_from([1, 2, 8]),
    share=st.floats(0.01, 1),
)
def test_never_below_the_roofline(
    hardware: str, dtype: str, tokens: int, tp: int, share: float
) -> None:
    distinct = max(1.0, min(4 * tokens, 128) * share)
    answer = moe_kernel_seconds(
        hardware, "vllm", dtype, M3_SHAPE, tokens, distinct, 4 * tokens, tp=tp
    )
    work = RankWork.of(M3_SHAPE, tokens, distinct, 4 * tokens, tp=tp)
    assert answer.seconds >= roofline_seconds(peaks_of(hardware, dtype), work)
    assert answer.low <= answer.seconds <= answer.high
