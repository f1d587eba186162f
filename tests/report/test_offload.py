"""Offload in the report: shown where a host is named, with the plan's own numbers."""

from __future__ import annotations

import pytest

from moeprof.model import MoEModel
from moeprof.offload import plan_offload
from moeprof.report import gather_report, render_html
from moeprof.report.offloading import SIZES
from moeprof.report.sections.offload import offload_section, speed
from moeprof.trace import Trace

MACHINE = "rtx-4090+epyc-9005"


def test_without_a_host_there_is_no_section(trace: Trace) -> None:
    contents = gather_report(trace, hardware="rtx-4090")
    assert offload_section(contents) is None
    assert "offload" not in contents.missing


def test_the_speeds_are_the_plans(trace: Trace) -> None:
    contents = gather_report(trace, hardware=MACHINE)
    assert len(contents.offload) == len(SIZES)
    whole = plan_offload(
        trace,
        trace.model,
        MACHINE,
        policy=["lru", "static"],
        precision=contents.deployments[-1].ledger.precision,
        max_num_seqs=1,
    )
    assert contents.offload[-1].to_dict() == whole.to_dict()
    section = offload_section(contents)
    assert section is not None
    assert f"{speed(whole.tok_s)} tokens/s with the whole card" in section.lead[0]
    assert f"({whole.provenance})" in section.lead[0]


def test_another_model_needs_a_named_transfer(trace: Trace) -> None:
    target = MoEModel.preset("minimax-m3")
    refused = gather_report(trace, hardware=MACHINE, target=target)
    assert refused.offload == []
    assert "transfer" in refused.missing["offload"]
    assert refused.missing["offload"].split(":")[0] in render_html(refused)
    carried = gather_report(
        trace, hardware="rtx-pro-6000+epyc-9005", target=target, transfer="hit-ratio"
    )
    assert {plan.transfer for plan in carried.offload} == {"hit-ratio"}
    assert 0 < len(carried.offload) <= len(SIZES)


def test_a_card_too_small_says_what_is_short(trace: Trace) -> None:
    target = MoEModel.preset("minimax-m3")
    contents = gather_report(
        trace, hardware="1xrtx-3090+epyc-9005", target=target, transfer="hit-ratio"
    )
    if not contents.offload:
        assert "more than there is" in contents.missing["offload"]
    with pytest.raises(Exception, match="more than there is"):
        plan_offload(trace, target, MACHINE, vram_bytes=8e9, transfer="hit-ratio")
