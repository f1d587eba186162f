"""Memory of one rank against what engines logged for it, and the rules behind it."""

from __future__ import annotations

from typing import Any

import pytest

from moeprof.errors import InputError
from moeprof.model import LinearAttention, MoEModel
from moeprof.projection import MemoryLedger, Parallelism, project_deployment, project_memory
from moeprof.report.text.memory import projection_text

GIB = 2**30
# vLLM 0.11.2, DeepSeek-R1-0528 in FP8 at TP8: "Model loading took 79.7390 GiB memory", "Available
# KV cache memory: 41.60 GiB", "GPU KV cache size: 635,648 tokens", in the test data of
# https://github.com/ashishkamra/vllm-memory-estimator (tests/test_validation_db.py).
R1_LOADED, R1_KV, R1_TOKENS = 79.739 * GIB, 41.60 * GIB, 635_648


def ledger(name: str, hardware: str, **options: Any) -> MemoryLedger:
    return project_memory(MoEModel.preset(name), hardware, **options)


def test_deepseek_r1_on_eight_gpus() -> None:
    """vLLM keeps kv_b_proj twice: beside the FP8 one in BF16, absorbed into queries and outputs."""
    found = ledger("deepseek-r1", "8xh200", precision="fp8_block", tp=8)
    added = found.classes["engine"]
    assert added.value == added.high == 61 * 128 * (128 + 128) * 512 * 2 / 8
    assert found.weights.value + added.value == pytest.approx(R1_LOADED, rel=0.003)
    # Gaudi, before anything is absorbed: https://github.com/HabanaAI/vllm-fork/issues/809
    assert found.weights.value == pytest.approx(79.41 * GIB, rel=0.002)
    in_bf16 = ledger("kimi-k2.5", "8xh200", precision="int4", tp=8)
    assert in_bf16.classes["engine"].value == 0  # its attention is not quantized


def test_what_vllm_left_for_kv_of_deepseek_r1() -> None:
    """The log that the assumption on vLLM's own memory was set by, at its default of 0.9 then."""
    asked: dict[str, Any] = {"precision": "fp8_block", "tp": 8, "utilization": 0.9}
    found = ledger("deepseek-r1", "8xh200", **asked)
    assert found.free_bytes == pytest.approx(R1_KV, rel=0.02)
    own = [found.classes[name] for name in ("activations", "graphs", "context")]
    assert all(size.provenance == "assumed" for size in own)


def test_latent_kv_is_576_numbers_a_layer_on_every_rank() -> None:
    for tp in (1, 8):
        found = ledger("deepseek-r1", "8xh200", precision="fp8_block", tp=tp)
        assert found.kv_bytes_per_token == 61 * 576 * 2 == 70_272
    assert pytest.approx(70_272, rel=1e-4) == R1_KV / R1_TOKENS
    indexed = ledger("deepseek-v3.2", "8xh200", precision="fp8_block", tp=8)
    assert indexed.kv_bytes_per_token == 61 * (576 + 128) * 2


@pytest.mark.parametrize(
    ("name", "tp", "copies"),
    [("deepseek-v3", 8, 8), ("minimax-m3", 4, 1), ("minimax-m3", 8, 2), ("qwen3-30b-a3b", 1, 1)],
)
def test_ranks_that_hold_the_same_kv(name: str, tp: int, copies: int) -> None:
    found = ledger(name, "8xh200", tp=tp)
    assert found.kv_copies == copies
    alone = ledger(name, "8xh200", tp=1)
    assert tp * found.kv_bytes_per_token >= copies * alone.kv_bytes_per_token


def test_qwen3_30b_on_four_gpus() -> None:
    """ "Model loading took 14.2474 GiB": https://github.com/vllm-project/vllm/issues/17327"""
    found = ledger("qwen3-30b-a3b", "4xh100", tp=4)
    assert found.weights.value == pytest.approx(14.2474 * GIB, rel=0.001)


def test_gpt_oss_120b_on_one_h100() -> None:
    """ "Model loading took 65.9651 GiB" with the Marlin kernel, of a checkpoint of 60.77 GiB:
    https://github.com/vllm-project/vllm/issues/23278"""
    found = ledger("gpt-oss-120b", "1xh100", precision="mxfp4")
    assert found.weights.value == 65_248_815_744
    padding = found.classes["engine"]
    assert found.weights.value + padding.value == pytest.approx(65.9651 * GIB, rel=0.002)
    assert (padding.low, padding.high) == (0, padding.value)
    assert found.fits
    assert ledger("gpt-oss-120b", "1xh100").classes["engine"].value == 0  # in BF16 it does not


def test_kv_of_gpt_oss_layers_with_and_without_a_window() -> None:
    """llama.cpp at 131,072 tokens: 9,216 MiB for the 18 full layers of two sequences
    (https://github.com/ollama/ollama/issues/16480); of the others the window of 128 alone."""
    asked = {"precision": "mxfp4", "tokens": 2 * 131_072, "sequences": 2}
    found = ledger("gpt-oss-120b", "1xb200", **asked)
    a_layer = 2 * 8 * 64 * 2  # bytes a token
    assert found.classes["kv"].value == 9_216 * 2**20 + 2 * 18 * 128 * a_layer
    assert found.kv_bytes_per_token == 36 * a_layer
    assert found.sliding_layers == 18
    assert found.max_sequences is not None
    assert found.max_sequences * 131_072 > found.max_kv_tokens  # which is a lower bound


def test_state_of_the_gated_delta_rule() -> None:
    """Qwen3.5-9B: blocks of 528 tokens of KV (4 heads of 256), which leave 0.76 % unused, hold one
    state (https://github.com/vllm-project/vllm/pull/37467, log of 2026-03-30)."""
    state = LinearAttention(1, 16, 32, 128, 128, 4).state_bytes_per_rank(1, "fp32", "bf16")
    assert 528 * (2 * 4 * 256 * 2) / state - 1 == pytest.approx(0.0076, abs=5e-5)


def test_states_are_counted_by_running_sequence_and_not_by_token() -> None:
    model = MoEModel.preset("qwen3.5-397b-a17b")
    each = model.state_bytes_per_sequence_per_rank(8)
    one, many = (
        project_deployment(model, "8xh200", concurrency=n, input_len=8192, output_len=1024)
        for n in (1, 64)
    )
    assert (one.memory["state"], many.memory["state"]) == (each, 64 * each)
    assert many.memory["kv"] == 64 * 9_216 * 15 * 2 * 1 * 256 * 2
    longer = project_deployment(model, "8xh200", concurrency=64, input_len=16_384)
    assert longer.memory["state"] == many.memory["state"]


def test_the_most_sequences_fit_and_one_more_does_not() -> None:
    for name, precision in (("qwen3.5-397b-a17b", "bf16"), ("gpt-oss-120b", "mxfp4")):
        asked: dict[str, Any] = {"precision": precision, "input_len": 1000, "output_len": 24}
        most = project_deployment(name, "8xh200", **asked).max_concurrency
        assert most is not None
        fits = [
            project_deployment(name, "8xh200", concurrency=n, **asked).fits
            for n in (most, most + 1)
        ]
        assert fits == [True, False]


def test_prediction_modules_are_loaded_when_asked_for() -> None:
    without, with_it = (
        ledger("deepseek-v3", "8xh200", precision="fp8_block", tp=8, mtp=mtp)
        for mtp in (False, True)
    )
    size = without.left_out["prediction"].value
    assert without.classes["prediction"].value == 0
    assert (
        with_it.classes["prediction"].value == size == with_it.weights.value - without.weights.value
    )
    assert "prediction" not in with_it.left_out
    assert with_it.kv_bytes_per_token == 62 * 576 * 2  # one more layer
    # 11.6e9 parameters beside the embedding and head that the model has already
    assert size == pytest.approx(11.6e9 / 8, rel=0.03)


def test_the_output_says_what_is_left_out_and_what_a_window_keeps() -> None:
    said = " ".join(projection_text(project_deployment("deepseek-v3", "8xh200")).split())
    assert "Left out: the modules for multi-token prediction" in said
    loaded = project_deployment("deepseek-v3", "8xh200", precision="fp8_block", mtp=True)
    said = " ".join(projection_text(loaded).split())
    assert "Left out" not in said
    assert "steps/s of the model itself" in said
    said = projection_text(project_deployment("gpt-oss-120b", "2xh200", precision="mxfp4"))
    assert "18 layers have a sliding window" in said
    assert "Room for at least" in said
    assert "padded to a multiple of 128" in said
    said = projection_text(project_deployment("qwen3.5-397b-a17b", "8xh200", concurrency=3))
    assert "22.9 MiB of state" in said
    assert "here 3 of them" in " ".join(said.split())


@pytest.mark.parametrize(
    ("name", "replicated"),
    [
        ("deepseek-v3", {"q_a_proj", "kv_a_proj", "q_a_norm", "kv_a_norm"}),
        ("qwen3.5-397b-a17b", {"q_norm", "k_norm", "linear_norm"}),
        ("gpt-oss-120b", {"o_bias"}),
    ],
)
def test_what_every_rank_holds_of_attention(name: str, replicated: set[str]) -> None:
    model, split = MoEModel.preset(name), Parallelism(tp=8)
    whole = {
        group.name
        for group in model.tensors
        if group.tensor_class == "attention" and split.rank_bytes(model, group, 800) == 800
    }
    assert whole == replicated


def test_linear_attention_splits_no_further_than_its_key_heads() -> None:
    with pytest.raises(InputError, match="tp 32 does not divide the 16 key heads"):
        ledger("qwen3.5-397b-a17b", "4x8xh200", tp=32)
