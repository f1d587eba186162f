"""The sentences: their numbers are the results' numbers, and nothing is claimed that is not so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.analysis.chance import even_router_imbalance
from moeprof.model import MoEModel
from moeprof.quantity import Provenance
from moeprof.report import ReportContents, gather_report
from moeprof.report.curves import near_cliff, slots_for, table_slots
from moeprof.report.findings import find_all
from moeprof.report.wording import percent, read_bytes, times
from moeprof.trace import Trace, synthesize_rows


def headline(contents: ReportContents, words: str) -> str:
    found = [f.headline for f in find_all(contents) if words in f.headline]
    assert len(found) == 1, found
    return found[0]


def test_numbers_are_those_of_the_results(contents: ReportContents) -> None:
    load, gpus, curve = contents.load, contents.gpu_load, contents.layer_curve
    assert load and gpus and curve
    assert headline(contents, "were recorded").startswith(f"{load.tokens:,} tokens of 6 requests")
    worst = max(load.per_layer, key=lambda layer: layer.imbalance)
    uneven = headline(contents, "busiest expert")
    assert times(load.mean_imbalance) in uneven
    assert f"layer {worst.layer} is the most uneven at {times(worst.imbalance)}" in uneven
    assert times(gpus.mean_imbalance) in headline(contents, "on 8 GPUs")
    slots = slots_for(curve, 0.5)
    assert slots
    cost = read_bytes(curve.misses_per_token[slots - 1] * contents.expert_bytes["bf16"])
    assert f"{slots} slots for 50 % hits ({cost} a token in BF16)" in headline(
        contents, "LRU cache"
    )


def test_every_hit_ratio_stands_beside_bytes(contents: ReportContents) -> None:
    for finding in find_all(contents):
        if "hits" in finding.headline and "%" in finding.headline:
            assert finding.headline.count("a token in BF16") == finding.headline.count("% hits")


def test_imbalance_and_balancedness_are_not_mixed(contents: ReportContents) -> None:
    assert not any("balancedness" in f.headline + f.meaning for f in find_all(contents))


def test_m3_memory_is_the_ledgers(contents: ReportContents) -> None:
    full = gather_of(contents, "minimax-m3")
    fits = headline(full, "fits:")
    assert fits.startswith("minimax-m3 on 8xh200-sxm (TP 8) fits: BF16 leaves 577 k tokens of KV")
    bound = next(f for f in find_all(full) if "bounded" in f.headline)
    for deployment in full.deployments:
        assert f"{deployment.decode_bound.value:,.0f} tokens/s" in bound.headline
        assert read_bytes(deployment.decode_read.value) in bound.headline
    assert "upper bound, not a projection" in bound.meaning


def gather_of(contents: ReportContents, target: str) -> ReportContents:
    """The same recording with another model projected."""
    model = contents.recorded
    return gather_report(Trace.in_memory(model, *synthesize_rows(model, 60)), target=target)


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("minimax-m3", ["bf16", "mxfp8", "nvfp4"]),
        ("deepseek-v3", ["bf16", "fp8_block", "mxfp8"]),
        ("gpt-oss-120b", ["bf16", "mxfp4", "mxfp8"]),
        ("kimi-k2.5", ["bf16", "int4", "mxfp8"]),
    ],
)
def test_published_precisions_come_before_others(
    contents: ReportContents, target: str, shown: list[str]
) -> None:
    deployments = gather_of(contents, target).deployments
    assert [deployment.ledger.precision for deployment in deployments] == shown


def test_a_transfer_is_said_before_any_number(contents: ReportContents) -> None:
    assert not contents.transfer
    full = gather_of(contents, "minimax-m3")
    first = find_all(full)[0]
    assert full.transfer
    assert first.tone == "notice"
    assert "not of minimax-m3 (57 MoE layers, top-4 of 128 experts)" in first.headline
    assert "do not depend on routing" in first.meaning
    assert first.provenance is Provenance.SPECIFIED


def test_what_is_too_large_is_said_with_what_is_short(model: MoEModel) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 60))
    contents = gather_report(trace, target="minimax-m3", hardware="h100")
    finding = next(f for f in find_all(contents) if "does not fit" in f.headline)
    smallest = min(contents.deployments, key=lambda d: d.ledger.total.value).ledger
    assert finding.meaning.startswith(f"{smallest.precision.upper()} is ")
    assert not any("bounded" in f.headline for f in find_all(contents))


def test_problems_and_drops_come_first(contents: ReportContents) -> None:
    info = replace(contents.info, problems=["segment cut"], dropped={"buffer full": 100})
    found = find_all(replace(contents, info=info))
    assert [finding.tone for finding in found[:3]] == ["problem", "problem", "fact"]
    assert "segment cut" in found[0].headline
    assert "100 tokens of 700 seen (14 %)" in found[1].headline


def test_no_number_near_the_cliff(contents: ReportContents) -> None:
    curve = contents.global_curve
    assert curve is not None
    assert near_cliff(curve, curve.token_cycle)
    assert curve.at(curve.token_cycle - contents.info.top_k) == 0
    assert not near_cliff(curve, 2 * curve.token_cycle)
    assert curve.token_cycle in table_slots(curve)
    finding = next(f for f in find_all(contents) if "cliff" in f.headline)
    assert f"{curve.token_cycle} slots" in finding.headline
    assert "hit ratio" not in finding.headline + finding.meaning


def test_the_cliff_begins_where_all_other_layers_fit(contents: ReportContents) -> None:
    finding = next(f for f in find_all(contents) if "cliff" in f.headline)
    assert "at 9 slots, the token cycle" in finding.headline
    assert "With up to 6 slots nothing is ever hit" in finding.meaning


def test_replayed_hits_are_said_to_be_computed(contents: ReportContents) -> None:
    finding = next(f for f in find_all(contents) if "LRU cache in every layer" in f.headline)
    assert finding.meaning.startswith("Computed from measured routing under contract atomic")


def test_the_cliff_is_not_claimed_where_layers_are_missing(model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 300, repeat=0.9)
    recorded = np.ones(rows.experts.shape[:2], bool)
    recorded[::2, :2] = False
    contents = gather_report(Trace.in_memory(model, replace(rows, recorded=recorded), requests))
    finding = next(f for f in find_all(contents) if "cliff" in f.headline)
    assert "some tokens lack some layers" in finding.meaning


def test_labels_that_do_not_differ_are_not_said_to(model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 800, requests=8, labels=("a",), repeat=0.0)
    named = [replace(r, label="xy"[r.index % 2]) for r in requests]
    contents = gather_report(Trace.in_memory(model, rows, named))
    assert "No difference between the 2 labels beyond chance" in headline(contents, "labels beyond")


@given(st.integers(1, 100_000), st.integers(1, 256))
def test_chance_is_at_least_even_and_at_most_all(assignments: int, experts: int) -> None:
    ratio = even_router_imbalance(assignments, experts)
    assert 1 <= ratio <= experts + 1e-9


def test_chance_shrinks_with_length() -> None:
    ratios = [even_router_imbalance(n, 128) for n in (128, 1280, 12_800, 128_000)]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] == pytest.approx(1.08, abs=0.02)


@pytest.mark.parametrize(
    ("share", "words"),
    [(0, "0 %"), (0.0312, "3.1 %"), (0.714, "71 %"), (0.996, "99.6 %"), (1, "100 %")],
)
def test_percent(share: float, words: str) -> None:
    assert percent(share) == words


def test_reuse_next_layer_and_advice_state_their_results(contents: ReportContents) -> None:
    headlines = " ".join(finding.headline for finding in find_all(contents))
    locality, affinity, advice = contents.locality, contents.affinity, contents.advice
    assert locality and locality.next_token_repeat and affinity and advice
    assert f"uses {percent(locality.next_token_repeat)} of the experts of the token" in headlines
    assert affinity.next_layer_top1 is not None
    assert f"used in the next {percent(affinity.next_layer_top1)} of the time" in headlines
    first = advice.options[0]
    assert f"{first.precision.upper()} on {first.hardware}" in headlines
