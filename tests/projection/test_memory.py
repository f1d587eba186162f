"""The memory ledger against published loads, and the laws that it keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.hardware import Cluster, load_profile
from moeprof.model import TENSOR_CLASSES, MoEModel, weight_bytes
from moeprof.projection import MemoryLedger, Parallelism, project_memory
from moeprof.quantity import Provenance

M3 = MoEModel.preset("minimax-m3")
QWEN = MoEModel.preset("qwen3-30b-a3b")
LLAMA = MoEModel.preset("llama-3.1-70b")
DEEPSEEK = MoEModel.preset("deepseek-v3")
HYBRID = MoEModel.preset("qwen3.5-397b-a17b")
GPT_OSS = MoEModel.preset("gpt-oss-120b")
MODELS = st.sampled_from([M3, QWEN, LLAMA, DEEPSEEK, HYBRID])
NODE = Cluster(load_profile("h200"), 1, 8)
BIG = Cluster(load_profile("b200"), 8, 8)
POWERS = st.sampled_from([1, 2, 4, 8])
PRECISIONS = st.sampled_from(["bf16", "mxfp8", "nvfp4", "mxfp4", "fp8_block", "q4_k"])


def test_published_weights_of_m3_mxfp8_on_eight_h100() -> None:
    """56 GB a GPU at TP8: https://github.com/SemiAnalysisAI/InferenceX/pull/1731"""
    ledger = project_memory(M3, "8xh100", precision="mxfp8", tp=8)
    assert ledger.weights.value == pytest.approx(56e9, rel=0.02)
    assert ledger.fits


def test_published_kv_of_262144_tokens_on_four_cards() -> None:
    """11.06 GiB a card at TP4 and BF16, beside 60 GB of MXFP4 weights:
    https://github.com/0xSero/minimax-m3-sm120"""
    ledger = project_memory(M3, NODE, precision="mxfp4", tp=4, tokens=262_144)
    assert ledger.classes["kv"].value / 2**30 == pytest.approx(11.06, rel=0.02)
    assert ledger.weights.value == pytest.approx(60e9, rel=0.02)


def test_published_kv_of_a_million_tokens_with_a_draft() -> None:
    """37.62 GiB a GPU at TP2, FP8 and an EAGLE3 draft:
    https://github.com/SemiAnalysisAI/InferenceX/pull/2511"""
    ledger = project_memory(
        M3,
        "2xb200",
        precision="nvfp4",
        tp=2,
        kv_dtype="fp8",
        index_dtype="fp8",
        tokens=1_048_576,
        draft="eagle3-gqa",
    )
    assert ledger.kv_bytes_per_token == 30_720 + 7_296 + 512
    assert ledger.classes["kv"].value / 2**30 == pytest.approx(37.62, rel=0.001)


def test_router_indexer_and_norms_stand_on_every_rank_and_kv_heads_are_not_cut() -> None:
    one, eight = (project_memory(M3, NODE, tp=tp) for tp in (1, 8))
    for name in ("router", "indexer", "norms"):
        assert eight.classes[name] == one.classes[name]
    for name in ("routed", "shared", "dense", "embedding", "head"):
        assert eight.classes[name].value == one.classes[name].value / 8
    # At TP8 a rank holds one of 4 KV heads, so k_proj and v_proj are cut 4 ways only.
    kv_projections = 60 * 2 * 512 * 6144 * 2
    qk_norms = 60 * 2 * 128 * 2
    rest = one.classes["attention"].value - kv_projections - qk_norms
    assert eight.classes["attention"].value == rest / 8 + kv_projections / 4 + qk_norms


def test_expert_parallelism_goes_by_whole_experts() -> None:
    whole = weight_bytes(M3, "mxfp8")["routed"]
    by_expert = project_memory(M3, NODE, precision="mxfp8", tp=8, ep=8)
    assert by_expert.classes["routed"].value == whole / 8
    uneven = project_memory(M3, Cluster(NODE.profile, 3, 8), precision="mxfp8", dp=24, ep=24)
    assert uneven.classes["routed"].value == whole * 6 / 128  # 128 experts on 24 ranks: up to 6
    assert uneven.classes["shared"].value == weight_bytes(M3, "mxfp8")["shared"]


def test_what_the_reserve_leaves_is_counted_in_whole_blocks() -> None:
    ledger = project_memory(M3, NODE, precision="nvfp4", tp=4, tokens=1)
    assert ledger.block_tokens == 128
    assert ledger.classes["kv"].value == 128 * ledger.kv_bytes_per_token
    assert ledger.max_kv_tokens % 128 == 0
    full = project_memory(M3, NODE, precision="nvfp4", tp=4, tokens=ledger.max_kv_tokens)
    assert full.fits
    assert not project_memory(
        M3, NODE, precision="nvfp4", tp=4, tokens=ledger.max_kv_tokens + 1
    ).fits
    assert project_memory(QWEN, NODE).block_tokens == 16


def test_what_does_not_fit_is_an_answer() -> None:
    ledger = project_memory(M3, "1xh100", precision="bf16")
    assert not ledger.fits
    assert ledger.free_bytes < 0
    assert ledger.max_kv_tokens == 0


def test_the_vision_tower_can_be_left_out() -> None:
    with_it = project_memory(M3, NODE, tp=8)
    without = project_memory(M3, NODE, tp=8, language_model_only=True)
    assert without.classes["vision"].value == 0
    assert without.free_bytes > with_it.free_bytes


def test_provenance_reaches_the_ledger() -> None:
    ledger = project_memory(M3, NODE, precision="mxfp8", tp=8)
    assert ledger.classes["routed"].provenance is Provenance.SPECIFIED
    assert ledger.classes["reserve"].provenance is Provenance.ASSUMED
    assert ledger.total.provenance is Provenance.ASSUMED
    assert "MiniMax-M3-MXFP8" in ledger.classes["routed"].source
    assumed = project_memory(M3, NODE, precision="q4_k", tp=8)
    assert assumed.classes["routed"].provenance is Provenance.ASSUMED


def test_the_ledger_is_plain_json() -> None:
    plain = json.loads(json.dumps(project_memory(M3, NODE, tp=8).to_dict()))
    assert [*plain["classes"]] == [
        *TENSOR_CLASSES, "prediction", "redundant", "draft", "engine", "kv", "state",
        "activations", "graphs", "context", "reserve",
    ]  # fmt: skip
    assert plain["parallelism"] == {"tp": 8, "ep": 1, "dp": 1, "pp": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tp": 0}, "tp must be"),
        ({"tp": 2.5}, "tp must be"),
        ({"tp": 3}, "tp 3 does not divide the 64 heads"),
        ({"tp": 16}, "needs 16 GPUs, not 8"),
        ({"tp": 4, "dp": 4}, "needs 16 GPUs, not 8"),
        ({"tp": 4, "ep": 3}, "ep 3 does not divide"),
        ({"tokens": -1}, "tokens must"),
        ({"sequences": 0}, "sequences must"),
        ({"tokens": float("nan")}, "tokens must"),
        ({"utilization": 0.0}, "utilization must"),
        ({"utilization": 1.5}, "utilization must"),
        ({"utilization": float("nan")}, "utilization must"),
        ({"draft_kv_bytes_per_token": -1}, "draft_kv"),
        ({"mtp": True}, "has no modules for multi-token prediction"),
        ({"precision": "fp7"}, "fp7"),
        ({"kv_dtype": "fp7"}, "fp7"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        project_memory(M3, NODE, **options)


def test_more_ways_than_experts_are_refused() -> None:
    few = MoEModel.from_config(
        {
            "model_type": "mixtral",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "intermediate_size": 64,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "vocab_size": 64,
            "max_position_embeddings": 64,
            "tie_word_embeddings": False,
        }
    )
    with pytest.raises(InputError, match="ep 8 is more than the 4 experts"):
        project_memory(few, NODE, tp=8, ep=8)


@given(MODELS, PRECISIONS, POWERS, POWERS, st.integers(0, 10**7))
def test_classes_sum_to_the_total(
    model: MoEModel, precision: str, tp: int, dp: int, tokens: int
) -> None:
    ledger = project_memory(model, BIG, precision=precision, tp=tp, dp=dp, tokens=tokens)
    assert sum(q.value for q in ledger.classes.values()) == ledger.total.value
    assert ledger.fits == (ledger.total.value <= ledger.capacity.value)
    assert ledger.free_bytes == ledger.capacity.value - ledger.total.value
    assert ledger.fits == (ledger.max_kv_tokens >= tokens) or tokens == 0


@given(MODELS, PRECISIONS)
def test_one_rank_holds_the_checkpoint_exactly(model: MoEModel, precision: str) -> None:
    ledger = project_memory(model, NODE, precision=precision)
    assert ledger.weights.value == sum(weight_bytes(model, precision).values())


def sizes(ledger: MemoryLedger) -> list[float]:
    return [ledger.classes[name].value for name in (*TENSOR_CLASSES, "kv")]


@given(
    MODELS,
    PRECISIONS,
    st.sampled_from([1, 2, 4]),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_more_ranks_never_hold_more(
    model: MoEModel, precision: str, tp: int, tokens: int, by_expert: bool
) -> None:
    fewer, more = (
        project_memory(
            model,
            NODE,
            precision=precision,
            tp=ways,
            ep=ways if by_expert and model.experts else 1,
            tokens=tokens,
        )
        for ways in (tp, 2 * tp)
    )
    assert all(a >= b for a, b in zip(sizes(fewer), sizes(more), strict=True))
    # and the ranks together hold at least the whole model
    whole = weight_bytes(model, precision)
    for name in TENSOR_CLASSES:
        assert 2 * tp * more.classes[name].value >= whole[name]


@given(POWERS, POWERS, st.sampled_from([1, 2, 4, 8, 16, 32, 64]))
def test_ranks_are_ways_by_expert_times_slices(tp: int, dp: int, ep: int) -> None:
    if (tp * dp) % ep:
        with pytest.raises(InputError):
            Parallelism(tp, ep, dp)
    else:
        split = Parallelism(tp, ep, dp)
        assert split.ep * split.moe_tp == split.ranks == tp * dp


def test_a_model_without_counted_tensors_is_refused() -> None:
    with pytest.raises(InputError, match="were not counted"):
        project_memory(replace(M3, tensors=()), NODE)
