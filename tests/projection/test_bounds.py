"""The bytes a decode step must read, and the speed that no step can pass."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.hardware import load_profile
from moeprof.model import MoEModel, weight_bytes
from moeprof.projection import decode_bound, decode_read_bytes
from moeprof.quantity import Provenance

M3 = MoEModel.preset("minimax-m3")
LLAMA = MoEModel.preset("llama-3.1-70b")


def test_one_token_of_m3_reads_its_active_parameters_and_the_head() -> None:
    """24.73 billion parameters in BF16, the router in FP32 (2 more bytes a weight)."""
    read = decode_read_bytes(M3, "bf16", M3.top_k)
    parameters = M3.parameters
    active = parameters["active"] + parameters["head"] + parameters["norms"]
    assert active == pytest.approx(24.73e9, rel=1e-3)
    assert read.value == 2 * active + 2 * parameters["router"]
    assert (read.unit, read.provenance) == ("bytes", Provenance.SPECIFIED)


def test_all_experts_read_all_but_the_table_and_the_tower() -> None:
    sizes = weight_bytes(M3, "nvfp4")
    left_out = sizes["embedding"] + sizes["vision"]
    assert decode_read_bytes(M3, "nvfp4", 128).value == sum(sizes.values()) - left_out


def test_layers_may_differ() -> None:
    per_layer = [4.0] * 56 + [128.0]
    mean = sum(per_layer) / 57
    uneven = decode_read_bytes(M3, "mxfp8", per_layer).value
    assert uneven == pytest.approx(decode_read_bytes(M3, "mxfp8", mean).value)


def test_a_tied_head_is_read_from_the_embedding() -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 100,
        "max_position_embeddings": 64,
    }
    tied, untied = (
        decode_read_bytes(MoEModel.from_config({**config, "tie_word_embeddings": t}), "bf16", 0)
        for t in (True, False)
    )
    assert tied.value == untied.value


def test_the_bound_is_peak_bandwidth_over_bytes() -> None:
    bound = decode_bound(M3, "8xh200", "bf16", 4)
    assert bound.unit == "steps/s"
    assert bound.value == 8 * 4.8e12 / decode_read_bytes(M3, "bf16", 4).value
    assert "bound" in bound.source


def test_of_a_published_range_the_bound_takes_the_upper_end() -> None:
    assert load_profile("b200").memory_bandwidth.high == 8.0e12
    bound = decode_bound(LLAMA, "b200", "bf16", 0)
    assert bound.value == 8.0e12 / decode_read_bytes(LLAMA, "bf16", 0).value


@pytest.mark.parametrize("distinct", [-1, 129, float("nan"), [4.0] * 60, [], [200.0] * 57])
def test_impossible_counts_are_refused(distinct: Any) -> None:
    with pytest.raises(InputError):
        decode_read_bytes(M3, "bf16", distinct)


@given(st.floats(0, 128), st.floats(0, 128), st.sampled_from(["bf16", "nvfp4", "q2_k"]))
def test_more_distinct_experts_never_read_less(a: float, b: float, precision: str) -> None:
    fewer, more = sorted((a, b))
    assert (
        decode_read_bytes(M3, precision, fewer).value
        <= decode_read_bytes(M3, precision, more).value
    )
    assert (
        decode_bound(M3, "8xh200", precision, fewer).value
        >= decode_bound(M3, "8xh200", precision, more).value
    )
