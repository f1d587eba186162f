"""The simulator against what is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.projection.serving import (
    Request,
    ServingOutcome,
    engine_policy,
    poisson_arrivals,
    simulate_serving,
    uniform_requests,
)
from moeprof.projection.step.batch import Batch

ONE_AT_A_TIME = engine_policy("vllm").with_limits(max_step_tokens=4096, max_sequences=1)


def second_a_thousand(batch: Batch) -> float:
    return batch.prefill / 1000


def real(batch: Batch) -> float:
    return 5e-3 + 2e-5 * batch.tokens + 1e-9 * batch.decode * batch.context


def queue(load: float, service: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """Mean wait before service, in mean service times, of requests of one token each."""
    arrivals = poisson_arrivals(len(service), load * 1000 / service.mean(), seed=3)
    served = simulate_serving(
        second_a_thousand,
        [Request(int(n), 1, t) for n, t in zip(service, arrivals, strict=True)],
        engine=ONE_AT_A_TIME,
    )
    wait = served.first_token_s - served.arrival_s - service[np.argsort(arrivals)] / 1000
    return float(wait.mean() / service.mean() * 1000)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_fixed_service_waits_as_an_m_d_1_queue(load: float) -> None:
    expected = load / (2 * (1 - load))
    assert queue(load, np.full(8_000, 1000)) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_exponential_service_waits_as_an_m_m_1_queue(load: float) -> None:
    service = np.ceil(np.random.default_rng(4).exponential(300, 8_000)).astype(np.int64)
    assert queue(load, service) == pytest.approx(load / (1 - load), rel=0.12)


def served(rate: float, engine: str = "vllm", kv_tokens: int | None = 60_000) -> ServingOutcome:
    wanted = uniform_requests(300, 1500, 200, length_spread=0.5, seed=1)
    times = poisson_arrivals(300, rate, seed=2)
    return simulate_serving(
        real,
        [
            Request(r.input_len, r.output_len, t)
            for r, t in zip(wanted, times.tolist(), strict=True)
        ],
        engine=engine,
        kv_tokens=kv_tokens,
    )


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_requests_in_the_system_are_rate_times_stay(engine: str) -> None:
    """Little's law, exact over a whole run that starts and ends empty; arrivals within a step
    enter the queue at its end, so the count misses up to half a step each."""
    done = served(8.0, engine)
    inside = done.queue_mean + done.running_mean
    stay = done.requests_per_s * done.e2e_ms["mean"] / 1e3
    assert inside <= stay
    assert inside == pytest.approx(stay, rel=0.05)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_latency_grows_with_the_rate(engine: str) -> None:
    waits = [served(rate, engine).ttft_ms["mean"] for rate in (2, 8, 32)]
    assert waits == sorted(waits)


def test_an_unloaded_engine_is_the_step_function_itself() -> None:
    done = simulate_serving(real, [Request(1000, 11)])
    assert done.ttft_ms["p50"] == pytest.approx(1e3 * real(Batch(0, 0, 1000, 0)))
    assert done.tpot_ms["p50"] == pytest.approx(1e3 * real(Batch(1, 1004.5, 0, 0)))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["vllm", "sglang", "trtllm"]), st.integers(1, 40), st.integers(0, 99))
def test_a_closed_loop_keeps_its_concurrency(engine: str, concurrency: int, seed: int) -> None:
    wanted = uniform_requests(60, 300, 50, length_spread=0.9, seed=seed)
    done = simulate_serving(real, wanted, engine=engine, concurrency=concurrency)
    assert done.requests == len(wanted)
    assert done.output_tokens == sum(r.output_len for r in wanted)
    assert done.input_tokens == sum(r.input_len for r in wanted)
    for t in done.arrival_s:
        inside = (done.arrival_s <= t) & (done.finish_s > t)
        assert inside.sum() <= concurrency
    ends = np.sort(done.finish_s)[: len(wanted) - concurrency]
    assert np.sort(done.arrival_s)[concurrency:] == pytest.approx(ends)  # replaced at once
    assert done.busy_share == pytest.approx(1.0)  # work conservation: never idle with work to do


def test_an_engine_with_work_is_never_idle() -> None:
    done = served(4.0)
    inside = np.zeros(0)
    for a, b in sorted(zip(done.arrival_s, done.finish_s, strict=True)):
        if len(inside) and a <= inside[-1]:
            inside[-1] = max(inside[-1], b)
        else:
            inside = np.concatenate([inside, [a, b]])
    periods = inside.reshape(-1, 2)
    busy = float((periods[:, 1] - periods[:, 0]).sum())
    assert done.busy_share * done.duration_s == pytest.approx(busy)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_order_in_time_of_each_request(engine: str) -> None:
    done = served(12.0, engine, kv_tokens=6000)
    assert (done.first_token_s > done.arrival_s).all()
    assert (done.finish_s >= done.first_token_s).all()
    assert done.kv_share_peak is not None and done.kv_share_peak <= 1
    assert (done.preemptions == 0) == (engine == "trtllm")


def test_the_same_input_gives_the_same_bytes() -> None:
    assert served(8.0).to_dict() == served(8.0).to_dict()
    one, two = (served(8.0).finish_s.tobytes() for _ in range(2))
    assert one == two
