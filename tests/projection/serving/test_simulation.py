from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moeprof.errors import InputError
from moeprof.projection.serving import (
    Admission,
    Request,
    Targets,
    engine_policy,
    poisson_arrivals,
    simulate_serving,
    uniform_requests,
)
from moeprof.projection.step.batch import Batch


def real(batch: Batch) -> float:
    return 5e-3 + 2e-5 * batch.tokens + 1e-9 * batch.decode * batch.context


def recorded(requests: list[Request], **options: object) -> list[Batch]:
    """The batches at knots are those the engine made, where lengths are whole knots."""
    seen: list[Batch] = []

    def law(batch: Batch) -> float:
        seen.append(batch)
        return 1.0

    simulate_serving(law, requests, **options)  # type: ignore[arg-type]
    return seen


def test_vllm_mixes_prompts_into_decode_steps_and_sglang_does_not() -> None:
    wanted = [Request(64, 8), Request(64, 8, arrival_s=2.5)]
    both = [(b.decode, b.prefill) for b in recorded(wanted)]
    assert (1, 64) in both
    apart = [(b.decode, b.prefill) for b in recorded(wanted, engine="sglang")]
    assert (0, 64) in apart
    assert not any(decode and prefill for decode, prefill in apart)


def test_a_long_prompt_is_cut_into_chunks() -> None:
    policy = engine_policy("vllm").with_limits(max_step_tokens=64)
    seen = recorded([Request(160, 1)], engine=policy)
    assert [(b.prefill, b.prefill_context) for b in seen] == [(64, 0), (64, 64), (32, 128)]


def test_an_engine_that_does_not_cut_gets_room_for_the_longest_prompt() -> None:
    seen = recorded([Request(16_384, 2)], engine="trtllm")
    assert max(b.prefill for b in seen) == 16_384


def test_cached_tokens_are_attended_to_but_not_computed() -> None:
    seen = recorded([Request(128, 1, cached_len=96)])
    assert [(b.prefill, b.prefill_context) for b in seen] == [(32, 96)]


def test_speculation_takes_fewer_steps() -> None:
    plain = simulate_serving(real, [Request(64, 101)])
    drafted = simulate_serving(real, [Request(64, 101)], accepted_tokens=2.5, draft_tokens=3)
    assert (plain.steps, drafted.steps) == (101, 41)


def test_groups_share_the_requests_and_the_slowest_sets_the_pace() -> None:
    long_and_short = [Request(4096, 2), Request(16, 2)]
    alone = simulate_serving(real, long_and_short, dp=2, lock_step=False)
    together = simulate_serving(real, long_and_short, dp=2)
    assert alone.first_token_s[1] < together.first_token_s[1]
    assert together.first_token_s[0] == pytest.approx(together.first_token_s[1])
    assert alone.duration_s <= together.duration_s


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_no_request_is_lost_between_groups_of_their_own(concurrency: int) -> None:
    wanted = uniform_requests(21, 100, 20, length_spread=0.5)
    done = simulate_serving(real, wanted, dp=4, lock_step=False, concurrency=concurrency)
    assert done.requests == 21
    assert done.output_tokens == sum(r.output_len for r in wanted)


def test_goodput_counts_requests_that_keep_both_targets() -> None:
    wanted = [Request(500, 20, float(t)) for t in poisson_arrivals(200, 60.0)]
    done = simulate_serving(real, wanted, targets=Targets(ttft_ms=40, tpot_ms=8))
    ttft = (done.first_token_s - done.arrival_s) * 1e3
    tpot = (done.finish_s - done.first_token_s) / 19 * 1e3
    good = ((ttft <= 40) & (tpot <= 8)).sum()
    assert 0 < good < 200
    assert done.goodput == pytest.approx(good / done.duration_s)
    assert done.good_share == good / 200
    free = simulate_serving(real, wanted)
    assert free.goodput == pytest.approx(free.requests_per_s)


def test_less_kv_admits_fewer_and_waits_longer() -> None:
    wanted = uniform_requests(64, 500, 100)
    roomy = simulate_serving(real, wanted, concurrency=32)
    tight = simulate_serving(real, wanted, concurrency=32, kv_tokens=3000)
    assert roomy.queue_peak < tight.queue_peak
    assert roomy.ttft_ms["p50"] < tight.ttft_ms["p50"]  # type: ignore[operator]
    assert roomy.preemptions == 0 < tight.preemptions


def test_whole_admission_never_preempts() -> None:
    policy = replace(engine_policy("vllm"), admission=Admission.WHOLE)
    wanted = uniform_requests(64, 500, 100)
    done = simulate_serving(real, wanted, engine=policy, concurrency=32, kv_tokens=3000)
    assert done.preemptions == 0


def test_engine_defaults_follow_the_memory_of_the_gpu() -> None:
    small, large = (engine_policy("vllm", gib * 2**30) for gib in (24, 141))
    assert (small.max_step_tokens, large.max_step_tokens) == (2048, 8192)
    sizes = [engine_policy("sglang", gib * 2**30).max_step_tokens for gib in (16, 24, 48, 80, 192)]
    assert sizes == [2048, 4096, 4096, 8192, 16384]
    assert all(engine_policy(name).source for name in ("vllm", "sglang", "trtllm"))


def test_lengths_are_drawn_within_their_spread() -> None:
    wanted = uniform_requests(2000, 1000, 100, length_spread=0.2, hit_ratio=0.5)
    prompts = np.array([r.input_len for r in wanted])
    assert (prompts.min(), prompts.max()) == (800, 1000)
    assert prompts.mean() == pytest.approx(900, rel=0.01)
    assert all(r.cached_len == r.input_len // 2 for r in wanted)
    assert wanted == uniform_requests(2000, 1000, 100, length_spread=0.2, hit_ratio=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_tokens": 100}, "does not fit into a KV cache of 100 tokens"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"dp": 0}, "dp 0"),
        ({"accepted_tokens": 1.5}, "1.5 tokens a step"),
        ({"accepted_tokens": float("nan"), "draft_tokens": 2}, "nan tokens a step"),
        ({"engine": "other"}, "no engine 'other'; there are vllm"),
    ],
)
def test_bad_values_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate_serving(real, [Request(100, 10)], **options)  # type: ignore[arg-type]


def test_bad_requests_are_refused() -> None:
    with pytest.raises(InputError, match="no requests"):
        simulate_serving(real, [])
    with pytest.raises(InputError, match="at least 1"):
        Request(0, 1)
    with pytest.raises(InputError, match="cached"):
        Request(10, 1, cached_len=10)
    with pytest.raises(InputError, match="arrives"):
        Request(10, 1, arrival_s=float("nan"))
    with pytest.raises(InputError, match="rate"):
        poisson_arrivals(3, 0)
    with pytest.raises(InputError, match="target"):
        Targets(ttft_ms=0)
    with pytest.raises(InputError, match="length_spread"):
        uniform_requests(1, 1, 1, length_spread=1)


def test_a_delay_before_the_engine_is_part_of_ttft_alone() -> None:
    wanted = [Request(1000, 11)] * 3
    at_once, later = (
        simulate_serving(real, wanted, concurrency=1, delay_s=delay) for delay in (0.0, 0.25)
    )
    assert later.ttft_ms["p50"] == pytest.approx(at_once.ttft_ms["p50"] + 250)  # type: ignore[operator]
    assert later.tpot_ms["p50"] == pytest.approx(at_once.tpot_ms["p50"])
    assert later.duration_s == pytest.approx(at_once.duration_s + 0.75)
    with pytest.raises(InputError, match="before the engine"):
        simulate_serving(real, wanted, delay_s=-1.0)
