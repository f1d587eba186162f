"""Projected speed in the report: the projection's own numbers, whose routing, and what is said."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from moeprof.hardware import load_hardware
from moeprof.model import MoEModel
from moeprof.projection import Traffic, plan_deployment, project_deployment, project_speed
from moeprof.projection.step.terms import OPERATIONS
from moeprof.report import ReportContents, find_all, gather_report, render_html
from moeprof.report.blocks import GAP, Bars
from moeprof.report.projecting import splits_of, usable_precisions
from moeprof.report.sections.speed import OPERATION_PIECES, speed_section
from moeprof.report.sections.trade_offs import front_of, gpu_tok_s, trade_offs_section, user_tok_s
from moeprof.trace import Trace, synthesize_rows
from tests.conftest import small_config

M3 = "minimax-m3"
LOAD = Traffic(concurrency=32, input_len=2000, output_len=500)


@pytest.fixture(scope="module")
def carried() -> ReportContents:
    """Full M3 under a recording of a small model, carried over, with a named load."""
    model = MoEModel.from_config(small_config())
    trace = Trace.in_memory(model, *synthesize_rows(model, 600))
    return gather_report(
        trace, target=M3, traffic=LOAD, transfer="hit-ratio,distinct-ratio", detailed=True
    )


def test_the_numbers_are_those_of_project(carried: ReportContents) -> None:
    study = carried.projection
    assert study is not None
    for line in study.splits:
        for row in line[::3]:
            split = row.ledger.parallelism
            alone = project_deployment(
                M3, "8xh200", precision="mxfp8", tp=split.tp, ep=split.ep, dp=split.dp,
                concurrency=row.concurrency, input_len=2000, output_len=500,
            )  # fmt: skip
            assert row.to_dict() == alone.to_dict()
    best = max(gpu_tok_s(line[i], study) for line in study.splits for i in (3,) if line[i].fits)
    assert gpu_tok_s(study.chosen, study) == pytest.approx(best, rel=0.05)  # routing differs


def test_a_recording_of_another_model_makes_all_assumed(carried: ReportContents) -> None:
    study = carried.projection
    assert study is not None
    assert study.routing == "distinct-ratio"
    chosen = study.chosen
    for each in (chosen.tpot_ms, chosen.ttft_ms, chosen.output_tok_s, study.models[0].tpot_ms):
        assert each is not None and each.provenance == "assumed"
    assert {step.provenance for step in study.routed} == {"assumed"}
    section = speed_section(carried)
    assert section is not None and "carried over" in section.lead[1]
    said = " ".join(f"{each.headline} {each.meaning}" for each in find_all(carried))
    assert "carried over by distinct-ratio: assumed" in said


def test_without_a_method_even_routing_is_said(trace: Trace) -> None:
    contents = gather_report(trace, target=M3)
    study, section = contents.projection, speed_section(contents)
    assert study is not None and section is not None
    assert (study.routing, study.routed) == ("even", [])
    assert study.chosen.tpot_ms is not None and study.chosen.tpot_ms.provenance == "fitted"
    assert "even routing, not of this recording" in section.lead[1]
    assert any("even routing" in finding.meaning for finding in find_all(contents))


def test_the_recorded_model_reads_the_recorded_experts(contents: ReportContents) -> None:
    study = contents.projection
    assert study is not None and study.routing == "recorded"
    assert {step.routing for step in study.routed} == {"even", "as recorded", "placed"}


def test_levers_are_the_law_with_one_thing_changed(carried: ReportContents) -> None:
    study = carried.projection
    assert study is not None and study.chosen.tpot_ms is not None
    levers = {lever.name: lever for lever in study.levers}
    assert [each.spread_ms for each in study.levers] == sorted(
        (each.spread_ms for each in study.levers), reverse=True
    )
    here, split = study.chosen.tpot_ms.value, study.chosen.ledger.parallelism
    assert levers["80 % band of the law"].slow_ms == study.chosen.tpot_ms.high
    assert all(
        lever.fast_ms <= here * 1.000001 and lever.slow_ms >= here * 0.999999
        for name, lever in levers.items()
    )
    even = project_speed(
        plan_deployment(M3, "8xh200", precision="mxfp8", tp=split.tp, ep=split.ep, dp=split.dp),
        LOAD,
    ).tpot_ms.value
    reads = levers["routing"]
    assert even in (pytest.approx(reads.fast_ms), pytest.approx(reads.slow_ms))


def test_a_tornado_is_drawn_around_where_we_stand(carried: ReportContents) -> None:
    study, section = carried.projection, speed_section(carried)
    assert study is not None and study.chosen.tpot_ms is not None and section is not None
    [drawn] = [b for b in section.blocks if isinstance(b, Bars) and b.id == "speed-levers"]
    assert [name for name, _ in drawn.legend] == ["faster", "slower"]
    for bar in drawn.bars:
        gap, faster, slower = bar.parts
        assert gap.hue == GAP and gap.text == ""
        assert gap.share + faster.share == pytest.approx(drawn.marks[0].at)
        assert slower.share >= 0 and gap.share + faster.share + slower.share <= 1
    assert 'data-tip=""' not in render_html(carried)


def test_the_front_is_not_beaten(carried: ReportContents) -> None:
    study = carried.projection
    assert study is not None
    front = [(user_tok_s(row), gpu_tok_s(row, study)) for row in front_of(study)]
    every = [(user_tok_s(r), gpu_tok_s(r, study)) for line in study.splits for r in line if r.fits]
    for user, gpu in front:
        assert not any((a >= user and b >= gpu) and (a, b) != (user, gpu) for a, b in every)


def test_every_operation_is_drawn() -> None:
    drawn = [name for _, names in OPERATION_PIECES.values() for name in names]
    assert sorted(drawn) == sorted(OPERATIONS)


def test_the_page_shows_each_part(carried: ReportContents) -> None:
    page = render_html(carried)
    for part in (
        "speed-memory", "speed-operations", "speed-levers", "trade-off-pareto", "trade-off-cost",
        "load-tpot", "load-ttft", "load-arrivals", "routing-distinct",
    ):  # fmt: skip
        assert page.count(f'id="{part}"') == 1
    assert (
        "llama-3.1-405b" in page
        and "Models that serve users as fast" in page
        and "Routing sensitivity" in page
    )
    shown = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # the chart library's code
    assert len(shown) < len(page) / 2
    assert not re.search(r"\bnan\b|\binf\b", shown, re.IGNORECASE)


def test_what_does_not_fit_is_said_and_nothing_else(trace: Trace) -> None:
    contents = gather_report(trace, target=M3, hardware="2xrtx-4090")
    assert contents.projection is None
    section = speed_section(contents)
    assert section is not None and section.blocks == []
    assert "does not fit on 2xrtx-4090 in BF16, MXFP8" in section.lead[0]
    assert trade_offs_section(contents) is None


def test_a_dense_model_has_a_speed(trace: Trace) -> None:
    contents = gather_report(trace, target="llama-3.1-70b")
    study, section = contents.projection, speed_section(contents)
    assert study is not None and section is not None
    assert "routed experts" not in study.chosen.operations
    assert section.lead[1] == "It has no routed experts."


def test_splits_use_every_gpu_and_divide_the_heads() -> None:
    m3 = MoEModel.preset(M3)
    for hardware in ("8xh200", "1xh200", "2x8xh200+ib-ndr-400", "3xrtx-pro-6000"):
        cluster = load_hardware(hardware)
        for split in splits_of(m3, cluster):
            assert split.ranks == cluster.gpus
            assert m3.attention is not None and m3.attention.heads % split.tp == 0
            assert split.tp <= cluster.gpus_per_node


def test_formats_are_those_that_the_gpu_multiplies() -> None:
    m3, names = MoEModel.preset(M3), ["bf16", "mxfp8", "nvfp4"]
    usable = {gpu: usable_precisions(m3, load_hardware(gpu), names) for gpu in ("h200", "b200")}
    assert usable == {"h200": ["bf16", "mxfp8"], "b200": names}


def test_the_same_contents_give_the_same_page(carried: ReportContents) -> None:
    assert render_html(carried) == render_html(replace(carried))
