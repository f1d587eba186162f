"""Bytes by weight format, and the sizes of whole checkpoints."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.model import (
    FORMATS,
    MoEModel,
    load_precision,
    precision_names,
    weight_bytes,
    weight_format,
)
from moeprof.quantity import Provenance

# Bits a weight and bytes of one M3 expert (3 matrices of 3072 x 6144), computed by hand from the
# block structure of each format.
EXPERT_BYTES = {
    "bf16": (16, 113_246_208),
    "fp8": (8, 56_623_104),
    "fp8_block": (8 + 32 / 128**2, 56_636_928),
    "mxfp8": (8.25, 58_392_576),
    # 4 bits, and an FP16 scale and an INT4 zero point a group of 128; GPTQ: 4 bytes an input column
    "int4_awq": (4 + (16 + 4) / 128, 29_417_472),
    "int4_gptq": (4 + (16 + 4) / 128, 29_417_472 + 4 * (2 * 6_144 + 3_072)),
    "int4": (4.5, 31_850_496),
    "mlx4": (4.5, 31_850_496),
    "mlx3": (3.5, 24_772_608),
    "q8_0": (8.5, 60_162_048),
    "q6_k": (6.5625, 46_448_640),
    "q5_k": (5.5, 38_928_384),
    "q4_k": (4.5, 31_850_496),
    "nvfp4": (4.5, 31_850_496),
    "mxfp4": (4.25, 30_081_024),
    "iq4_xs": (4.25, 30_081_024),
    "q3_k": (3.4375, 24_330_240),
    "iq3_s": (3.4375, 24_330_240),
    "iq3_xxs": (3.0625, 21_676_032),
    "q2_k": (2.625, 18_579_456),
    "iq1_m": (1.75, 12_386_304),
    "iq1_s": (1.5625, 11_059_200),
}


@pytest.fixture(scope="module")
def m3() -> MoEModel:
    return MoEModel.preset("minimax-m3")


@pytest.mark.parametrize("name", EXPERT_BYTES)
def test_bytes_of_an_m3_expert(m3: MoEModel, name: str) -> None:
    bits, size = EXPERT_BYTES[name]
    assert weight_format(name).bits_per_weight == bits
    assert m3.bytes_per_expert(name) == size


def test_qwen_in_bf16_is_two_bytes_a_parameter() -> None:
    """A published map holds for its own model: M3's FP32 router is not Qwen's."""
    qwen = MoEModel.preset("qwen3-30b-a3b")
    assert sum(weight_bytes(qwen, "bf16").values()) == 61_064_245_248


def test_a_bare_format_is_an_assumed_layout(m3: MoEModel) -> None:
    guess = load_precision("q4_k", m3)
    assert guess.provenance is Provenance.ASSUMED
    assert guess.formats["router"] == "fp32"
    assert load_precision("fp8", m3).formats["embedding"] == "bf16"
    assert load_precision("nvfp4", MoEModel.preset("qwen3-30b-a3b")).provenance == "assumed"


def test_a_map_of_ones_own_mixes_formats(m3: MoEModel) -> None:
    mixed = weight_bytes(m3, {"routed": "q4_k", "head": "q6_k"})
    assert mixed["routed"] == 7_296 * 31_850_496
    assert mixed["head"] == 1_229_193_216 * 6.5625 / 8
    assert mixed["embedding"] == 2 * 1_229_193_216


def test_engines_names_mean_the_same_checkpoint(m3: MoEModel) -> None:
    assert load_precision("bfloat16", m3) == load_precision("BF16", m3)
    assert {"bf16", "mxfp8", "nvfp4", "mxfp4"} <= set(precision_names())


def test_norms_stay_bf16_in_a_quantized_class(m3: MoEModel) -> None:
    mxfp8 = load_precision("mxfp8", m3)
    kept = {g.name for g in m3.tensors if mxfp8.format_of(g).name == "bf16"}
    assert {"q_norm", "k_norm", "index_q_norm", "layer_norm", "lm_head"} <= kept
    assert not {"q_proj", "index_k_proj", "gate"} & kept


def test_an_exception_may_hold_for_one_class_alone(m3: MoEModel) -> None:
    bf16 = load_precision("bf16", m3)
    everywhere = replace(bf16, exceptions={"down_proj": "q8_0"})
    in_experts = replace(bf16, exceptions={"routed.down_proj": "q8_0"})
    changed = {g.tensor_class for g in m3.tensors if everywhere.format_of(g).name == "q8_0"}
    assert changed == {"routed", "shared", "dense"}
    changed = {g.tensor_class for g in m3.tensors if in_experts.format_of(g).name == "q8_0"}
    assert changed == {"routed"}


def test_a_class_that_is_absent_takes_no_bytes(m3: MoEModel) -> None:
    text_only = replace(load_precision("bf16", m3), absent=("vision",))
    assert weight_bytes(m3, text_only)["vision"] == 0
    with pytest.raises(InputError, match="wings"):
        replace(text_only, absent=("wings",))


@pytest.mark.parametrize("precision", ["fp7", "nvfp", {"routed": "fp7"}, {"wings": "bf16"}])
def test_an_unknown_format_or_class_is_refused(m3: MoEModel, precision: str | dict) -> None:
    with pytest.raises(InputError, match=r"fp7|nvfp4|wings"):
        load_precision(precision, m3)


@given(st.sampled_from(sorted(FORMATS)), st.integers(1, 2_000), st.integers(1, 2_000))
def test_no_tensor_is_smaller_than_its_bits(name: str, rows: int, columns: int) -> None:
    chosen = FORMATS[name]
    size = chosen.tensor_bytes((rows, columns))
    assert size >= rows * columns * chosen.bits_per_weight / 8 - 1e-6
    whole = (rows * chosen.block[0], columns * chosen.block[1] * 8)
    beside = whole[1] * chosen.column_bytes
    assert chosen.tensor_bytes(whole) == whole[0] * whole[1] * chosen.bits_per_weight / 8 + beside


def test_every_format_names_its_source() -> None:
    assert all(chosen.source and chosen.name == name for name, chosen in FORMATS.items())
