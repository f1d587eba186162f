"""Levers and the tornado move one thing and leave the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from moeprof import LatencyTargets, advise_deployment, load_model, open_trace, plan_traffic
from moeprof.projection import plan_deployment, project_speed, shipped_laws
from moeprof.projection.advice import Advice
from moeprof.projection.advice.recorded import RecordedRouting
from moeprof.projection.advice.tornado import TornadoBar, tornado_bars
from moeprof.projection.routing import Shape, shape_of
from moeprof.projection.step import EvenLoads

M3 = load_model("minimax-m3")
TRACE = Path(__file__).parents[3] / "traces" / "tiny-m3.moetrace"


@pytest.fixture(scope="module")
def advice() -> Advice:
    traffic = plan_traffic(M3, input_len=2048, output_len=512)
    recording = open_trace(TRACE)
    targets = LatencyTargets(30, 2000)
    return advise_deployment(
        M3,
        "4xb200",
        targets,
        traffic,
        precisions=["nvfp4"],
        trace=recording,
        transfer="distinct-ratio",
    )


def test_a_lever_moves_alone(advice: Advice) -> None:
    best = advice.options[0]
    for row in (row for row in advice.levers if row.lever == "precision"):
        other = plan_deployment(
            M3,
            "4xb200",
            precision=row.setting,
            tp=best.parallelism.tp,
            ep=best.parallelism.ep,
            dp=best.parallelism.dp,
            kv_dtype=best.kv_dtype,
        )
        loads = RecordedRouting(open_trace(TRACE), M3, "distinct-ratio").loads(best.parallelism.ep)
        speed = project_speed(other, best.traffic, loads=loads)
        assert row.tpot_ms and row.tpot_ms.value == pytest.approx(speed.tpot_ms.value)


def test_each_lever_starts_with_what_is_chosen(advice: Advice) -> None:
    best = advice.options[0]
    for lever in ("precision", "ranks"):
        first = next(row for row in advice.levers if row.lever == lever)
        assert first.change == 0 and first.fits
        assert first.output_tok_s == best.output_tok_s


def test_placement_is_judged_before_and_after(advice: Advice) -> None:
    before, after = (row for row in advice.levers if row.lever == "placement")
    assert before.imbalance and after.imbalance
    assert 1 <= after.imbalance < before.imbalance
    assert after.change is not None and after.change >= 0


def test_a_recording_adds_its_routings_to_the_tornado(advice: Advice) -> None:
    recorded = RecordedRouting(open_trace(TRACE), M3, "distinct-ratio")
    assert list(recorded.routings(1)) == ["recorded"]
    assert list(recorded.routings(4)) == ["recorded", "placed"]
    bar = next(bar for bar in advice.tornado if bar.factor == "routing")
    assert {bar.low_setting, bar.high_setting} <= {"even", "recorded", "placed"}
    assert bar.tpot_ms[0] <= bar.base_tpot_ms <= bar.tpot_ms[1]


def test_placement_is_unknown_without_a_recording() -> None:
    traffic = plan_traffic(M3, input_len=2048, output_len=512)
    found = advise_deployment(M3, "4xb200", LatencyTargets(30), traffic, precisions=["nvfp4"])
    placement = [row for row in found.levers if row.lever == "placement"]
    assert [row.tpot_ms for row in placement] == [None]
    assert "--trace" in placement[0].note


@pytest.fixture(scope="module")
def bars() -> dict[str, TornadoBar]:
    deployment = plan_deployment("minimax-m3", "8xh200", precision="mxfp8", ep=8)
    traffic = plan_traffic(M3, input_len=2048, output_len=512, draft_tokens=3, accepted=2.5)
    routings = {"even": EvenLoads(shape(), 8), "half": HalfLoads()}
    found = tornado_bars(deployment, traffic, laws=shipped_laws(), routings=routings)
    return {bar.factor: bar for bar in found}


class HalfLoads(EvenLoads):
    """Half as many experts."""

    def __init__(self) -> None:
        super().__init__(shape(), 8)

    def distinct(self, tokens: float, consecutive: int = 1) -> float:
        """Half of even."""
        return super().distinct(tokens, consecutive) / 2


def shape() -> Shape:
    return shape_of(M3)


def test_more_of_a_good_thing_is_faster(bars: dict[str, TornadoBar]) -> None:
    better = {"memory bandwidth", "arithmetic", "links between GPUs", "tokens accepted a step"}
    worse = {"launches and host", "distinct experts", "prompt length"}
    assert better | worse | {"routing", "answer length", "requests at a time"} == set(bars)
    for name, bar in bars.items():
        low, high = bar.output_tok_s
        if name in better:
            assert low < bar.base_output_tok_s < high
        if name in worse:
            assert low >= bar.base_output_tok_s >= high
            assert low > high


def test_bars_are_sorted_by_swing_and_share_their_base(bars: dict[str, TornadoBar]) -> None:
    swings = [bar.swing for bar in bars.values()]
    assert swings == sorted(swings, reverse=True)
    assert len({(bar.base_tpot_ms, bar.base_output_tok_s) for bar in bars.values()}) == 1


def test_the_base_is_the_projection(bars: dict[str, TornadoBar]) -> None:
    deployment = plan_deployment("minimax-m3", "8xh200", precision="mxfp8", ep=8)
    traffic = plan_traffic(M3, input_len=2048, output_len=512, draft_tokens=3, accepted=2.5)
    speed = project_speed(deployment, traffic)
    bar = bars["routing"]
    assert bar.base_tpot_ms == pytest.approx(speed.tpot_ms.value)
    assert bar.base_output_tok_s == pytest.approx(speed.output_tok_s.value)
    assert (bar.low_setting, bar.high_setting) == ("half", "even")
    assert bar.tpot_ms[1] == pytest.approx(bar.base_tpot_ms)
