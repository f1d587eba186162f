"""Amounts of a step against counts made by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.projection import plan_deployment
from moeprof.projection.step import Batch, EvenLoads
from moeprof.projection.step.attending import attended_bytes
from moeprof.projection.step.terms import TERM_NAMES
from moeprof.projection.step.work import Work, work_of

H200_BANDWIDTH = 4.8e12


def work(**asked: object) -> Work:
    named = {"model": "minimax-m3", "hardware": "8xh200", "precision": "bf16"} | asked
    return work_of(plan_deployment(**named))  # type: ignore[arg-type]


def amounts(of: Work, **batch: float) -> dict[str, float]:
    step = {"decode": 1, "context": 1024, "prefill": 0, "prefill_context": 0} | batch
    found = of.amounts(Batch(**step))  # type: ignore[arg-type]
    return dict(zip(TERM_NAMES, found.tolist(), strict=True))


def test_one_token_reads_four_experts_of_each_layer_an_eighth_on_each_rank() -> None:
    read = 57 * 4 * 113_246_208 / 8  # m3.md: bytes of an expert in BF16
    assert amounts(work())["experts"] == pytest.approx(read / H200_BANDWIDTH, rel=1e-6)


def test_many_tokens_read_every_expert_once() -> None:
    every = 57 * 128 * 113_246_208 / 8
    found = amounts(work(), decode=400)["experts"]
    assert found == pytest.approx(every / H200_BANDWIDTH, rel=1e-4)


def test_products_bound_a_step_once_each_expert_has_tokens_enough() -> None:
    few, many = (amounts(work(), decode=n)["experts"] for n in (4_000, 64_000))
    flop = 2 * 64_000 * 4 * 57 * 56_623_104 / 8
    assert few < many
    assert many == pytest.approx(flop / 989e12, rel=1e-6)


def test_sparse_attention_reads_index_keys_of_all_and_keys_of_2048_tokens() -> None:
    of, context = work(), 100_000
    index = 57 * 128 * 2 * context
    keys = 2 * 128 * 2  # one head of four on each rank, keys and values in BF16
    expected = index + 57 * keys * 2048 + 3 * keys * context
    assert attended_bytes(of.deployment, of.cache, context) == pytest.approx(expected)


def test_a_prompt_costs_what_its_tokens_compute() -> None:
    found = amounts(work(), prefill=4096)
    assert found["prefill_experts"] == pytest.approx(2 * 4096 * 12.910e9 / 8 / 989e12, rel=1e-3)
    assert all(not value for name, value in amounts(work()).items() if name.startswith("prefill"))


def test_drafted_tokens_are_computed_like_others() -> None:
    drafted, plain = amounts(work(), decode=2, draft_tokens=3), amounts(work(), decode=8)
    assert drafted["experts"] == plain["experts"]
    assert drafted["kv"] == pytest.approx(plain["kv"] / 4)  # the cache is read once a sequence


def test_a_dense_model_has_no_experts_and_one_rank_no_collective() -> None:
    found = amounts(work(model="llama-3.1-70b", hardware="1xh200", precision="fp8"))
    assert found["experts"] == found["moe_layer"] == found["reduce"] == 0
    assert found["dense"] == pytest.approx((12.08e9 + 56.37e9) / H200_BANDWIDTH, rel=1e-3)


@given(tokens=st.floats(1, 1e5), ep=st.sampled_from([1, 2, 4, 8]))
def test_even_loads_lie_between_one_tokens_and_all_experts(tokens: float, ep: int) -> None:
    loads = EvenLoads(work().even.shape, ep)
    assert 4 / ep * 0.999 <= loads.distinct(tokens) <= 128 / ep
    assert loads.distinct(tokens + 1) >= loads.distinct(tokens)
