"""Steady serving: what must hold whatever the constants are."""

from __future__ import annotations

import pytest

from moeprof.errors import InputError
from moeprof.projection import Speed, Traffic, plan_deployment, project_deployment, project_speed
from moeprof.projection.closed_loop import check_traffic


def speed(concurrency: int = 8, output_len: int = 1024, **asked: object) -> Speed:
    named = {"model": "minimax-m2.5", "hardware": "4xh200", "precision": "fp8_block"} | asked
    traffic = Traffic(concurrency, 1024, output_len)
    return project_speed(plan_deployment(**named), traffic)  # type: ignore[arg-type]


def test_a_request_alone_never_waits_for_its_own_prompt() -> None:
    assert not any(name.startswith("prefill") for name in speed(1).operations)


def test_rates_and_times_agree() -> None:
    found = speed(32)
    whole_ms = found.ttft_ms.value + 1023 * found.tpot_ms.value
    assert found.output_tok_s.value == pytest.approx(32 * 1024 / whole_ms * 1e3)
    assert found.total_tok_s.value == pytest.approx(2 * found.output_tok_s.value)
    assert sum(found.operations.values()) == pytest.approx(found.tpot_ms.value)
    assert sum(found.share.values()) == pytest.approx(1)


def test_more_requests_are_slower_each_and_faster_together() -> None:
    few, many = speed(4), speed(64)
    assert many.tpot_ms.value > few.tpot_ms.value
    assert many.ttft_ms.value > few.ttft_ms.value
    assert many.output_tok_s.value > few.output_tok_s.value


def test_requests_that_memory_does_not_hold_wait_for_their_first_token() -> None:
    fits, waits = speed(32, output_len=8192), speed(4096, output_len=8192)
    assert fits.running == 32
    assert waits.running < 2048
    assert waits.ttft_ms.value > 20 * fits.ttft_ms.value


def test_bands_hold_the_value_and_widen_with_the_distance() -> None:
    near, far = speed(), speed(hardware="8xl40s")
    assert near.familiarity == "served"
    assert far.familiarity == "gpu"
    for each in (near.tpot_ms, near.ttft_ms, near.output_tok_s, far.tpot_ms):
        assert each.low is not None and each.high is not None
        assert each.low < each.value < each.high
    assert far.tpot_ms.provenance == "assumed"
    assert near.tpot_ms.provenance == "fitted"


def test_speculation_pays_by_its_acceptance() -> None:
    asked = {"precision": "mxfp8", "concurrency": 4, "input_len": 1024, "output_len": 1024}
    plain = project_deployment("minimax-m3", "8xh200", **asked)  # type: ignore[arg-type]
    drafted = [
        project_deployment("minimax-m3", "8xh200", draft_tokens=3, accepted=tau, **asked)  # type: ignore[arg-type]
        for tau in (1.0, 2.83)
    ]
    times = [each.tpot_ms.value for each in (*drafted, plain) if each.tpot_ms]
    assert times[1] < times[2] < times[0]  # accepted, without, all rejected


@pytest.mark.parametrize(
    "wrong",
    [
        {"concurrency": 0},
        {"input_len": -1},
        {"cached_len": 8},
        {"accepted": 3.0, "draft_tokens": 1},
        {"accepted": float("nan")},
    ],
)
def test_traffic_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    named = {"concurrency": 1, "input_len": 8, "output_len": 8} | wrong
    with pytest.raises(InputError, match=next(iter(wrong))):
        check_traffic(Traffic(**named))  # type: ignore[arg-type]
