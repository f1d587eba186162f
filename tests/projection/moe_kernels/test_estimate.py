"""What is measured, fitted or assumed; the table read back; one clear line on bad input."""

from __future__ import annotations

import numpy as np
import pytest

from moeprof.errors import InputError
from moeprof.model.moe_model import MoEModel
from moeprof.projection.moe_kernels import (
    M3_SHAPE,
    ExpertShape,
    kernel_groups,
    moe_kernel_seconds,
    timed_kernel_seconds,
)
from moeprof.projection.moe_kernels.groups import peaks_of
from moeprof.projection.moe_kernels.tables import (
    ROUTINGS,
    TIMED_TOKENS,
    log_correction,
    timed_cells,
    timed_work,
)
from moeprof.quantity import Provenance

ANY = ("any device", "any engine", "any kernel", "bf16")


def test_the_whole_table_ships() -> None:
    cells = timed_cells()
    assert sum(cell.seconds.size for cell in cells.values()) == 62_100
    assert len(cells) == len(kernel_groups()) == 31


def test_a_published_row() -> None:
    # b200_sxm, sglang 0.5.14, sglang_fused_moe_triton, bfloat16, tp 1, ep 1, balanced, 64 tokens
    cell = timed_cells()[("b200-sxm", "sglang", "sglang_fused_moe_triton", "bf16")]
    place = np.flatnonzero((cell.tp == 1) & (cell.ep == 1))[0]
    found = cell.seconds[place, TIMED_TOKENS.index(64), ROUTINGS.index("balanced")]
    assert found == pytest.approx(2.336548461914062e-3, rel=1e-3)


@pytest.mark.parametrize("hardware", ["b200", "l40s"])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_timed_points_read_back(hardware: str, routing: str) -> None:
    cell = timed_cells()[
        (
            f"{hardware}-sxm" if hardware == "b200" else hardware,
            "trtllm",
            "moe_torch_flow_cutlass",
            "bf16",
        )
    ]
    place = np.flatnonzero((cell.tp == 2) & (cell.ep == 8))[0]
    errors = []
    for row, tokens in enumerate(TIMED_TOKENS):
        answer = timed_kernel_seconds(hardware, "trtllm", "bf16", routing, tokens, tp=2, ep=8)
        assert answer.provenance is Provenance.MEASURED
        measured = cell.seconds[place, row, ROUTINGS.index(routing)]
        errors.append(abs(float(answer.seconds) / measured - 1))
    assert np.median(errors) < 0.02


def test_correction_is_exact_where_routings_agree_and_linear_in_log_tokens() -> None:
    nodes = timed_work(ANY, np.ones(1), np.ones(1), 2.0).at(0)
    ratio = np.repeat(np.log(nodes.tokens[:, :1]), 3, axis=1)  # the same for every routing
    work = timed_work(ANY, np.ones(1), np.ones(1), 2.0).at(0).at(slice(3, 9), 1)
    assert log_correction(nodes, ratio, work) == pytest.approx(np.log(work.tokens))
    between = work.at([2])
    between.tokens[:] = 48.0
    assert log_correction(nodes, ratio, between) == pytest.approx(np.log(48))


def test_what_was_timed_from_the_cache_is_projected_from_memory() -> None:
    # one expert at TP 2 is 54 MiB: half of an L40S's cache, 66 us from its memory
    point = (M3_SHAPE, 1, 1, 1)
    warm = moe_kernel_seconds("l40s", "trtllm", "bf16", *point, tp=2, ep=8, as_timed=True)
    cold = moe_kernel_seconds("l40s", "trtllm", "bf16", *point, tp=2, ep=8)
    assert cold.seconds > 3 * 6144 * 1536 * 2 / 864e9 > warm.seconds
    plenty = (M3_SHAPE, 4096, 128, 16384)
    ends = [
        moe_kernel_seconds("l40s", "trtllm", "bf16", *plenty, as_timed=timed).seconds
        for timed in (True, False)
    ]
    assert ends[0] == pytest.approx(ends[1])


def test_provenance_weakens_with_distance() -> None:
    timed = moe_kernel_seconds("b200", "vllm", "nvfp4", M3_SHAPE, 32, 82, 128).quantity
    assert timed.provenance is Provenance.MEASURED
    other_tp = moe_kernel_seconds("b200", "vllm", "nvfp4", M3_SHAPE, 32, 82, 128, tp=3).quantity
    assert other_tp.provenance is Provenance.FITTED
    qwen = ExpertShape.of(MoEModel.preset("qwen3-235b-a22b"))
    other_model = moe_kernel_seconds("b200", "vllm", "bf16", qwen, 32, 100, 256).quantity
    assert other_model.provenance is Provenance.FITTED
    other_gpu = moe_kernel_seconds("h100", "vllm", "bf16", M3_SHAPE, 32, 82, 128).quantity
    assert other_gpu.provenance is Provenance.ASSUMED and "h200-sxm vllm" in other_gpu.source
    assert (
        other_gpu.value > moe_kernel_seconds("h200", "vllm", "bf16", M3_SHAPE, 32, 82, 128).seconds
    )
    other_engine = moe_kernel_seconds("rtx-5090", "llama.cpp", "q4_k", M3_SHAPE, 1, 4, 4).quantity
    assert other_engine.provenance is Provenance.ASSUMED and other_engine.unit == "s"


def test_what_weights_are_computed_in() -> None:
    cases = {
        ("b200", "nvfp4"): 9000, ("b200", "mxfp4"): 4500, ("b200", "fp8_block"): 4500,
        ("h200", "nvfp4"): 989, ("h200", "mxfp4"): 989, ("h200", "fp8"): 1979,
        ("b200", "q4_k"): 2250,
    }  # fmt: skip
    for (hardware, dtype), tflops in cases.items():
        assert peaks_of(hardware, dtype).flop_per_s == tflops * 1e12


def test_unpacking_kernels_waste_no_tiles_of_64_rows() -> None:
    # 128 experts with two rows each: as good as reading, which takes 7.2 ms at the peak
    answer = moe_kernel_seconds("rtx-4090", "vllm", "int4_awq", M3_SHAPE, 64, 128, 256).quantity
    assert 1 < answer.value / (128 * 3 * 6144 * 3072 * (4.15625 / 8) / 1.008e12) < 2


def test_arrays_are_the_points_one_by_one() -> None:
    tokens, distinct = np.array([8.0, 64.0, 4096.0]), np.array([[20.0], [30.0]])
    many = moe_kernel_seconds("h200", "trtllm", "bf16", M3_SHAPE, tokens, distinct, 4 * tokens)
    assert many.seconds.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        point = (tokens[j], distinct[i, 0], 4 * tokens[j])
        one = moe_kernel_seconds("h200", "trtllm", "bf16", M3_SHAPE, *point)
        assert one.quantity.value == pytest.approx(many.seconds[i, j])
    with pytest.raises(InputError, match="6 kernel times are not one quantity"):
        _ = many.quantity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hardware": "h999"}, "no GPU"),
        ({"dtype": "bf17"}, "no weight format 'bf17'"),
        ({"kernel": "magic"}, "no MoE kernel 'magic'"),
        ({"tokens": -1}, "tokens must be >= 0, not -1"),
        ({"distinct": 129}, "distinct must be from 0 to the rank's experts, not 129"),
        ({"distinct": 65, "ep": 2}, "distinct must be"),
        ({"load": 5}, "load must be at least distinct"),
        ({"load": 129}, "load must be from 0 to tokens x top_k"),
        ({"load": float("nan")}, "load must be"),
        ({"tp": 0}, "tp and ep must be at least 1"),
        ({"tokens": np.ones(2), "load": np.ones(3)}, "do not go together"),
    ],
)
def test_bad_input_gets_one_line(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"hardware": "b200", "engine": "vllm", "dtype": "bf16"}
    good |= {"shape": M3_SHAPE, "tokens": 32, "distinct": 82, "load": 128}
    with pytest.raises(InputError, match=message) as caught:
        moe_kernel_seconds(**(good | change))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_dense_models_have_no_kernel() -> None:
    with pytest.raises(InputError, match="no routed experts"):
        ExpertShape.of(MoEModel.preset("llama-3.1-70b"))
