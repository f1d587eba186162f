"""Load against hand-made cases, the textbook formulas, and its laws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.analysis import analyze_load, expert_load
from moeprof.analysis.counting import count_experts
from moeprof.errors import InputError, TraceError
from moeprof.model import MoEModel
from moeprof.trace import Phase, TokenRows, Trace, open_trace, synthesize_rows, write_counts
from tests.analysis.damage import with_foreign_id


def with_experts(trace: Trace, model: MoEModel, experts: np.ndarray) -> Trace:
    """The same tokens with other ids."""
    rows = TokenRows(
        step=trace.step,
        request=trace.request,
        position=trace.position,
        phase=trace.phase,
        experts=experts,
    )
    return Trace.in_memory(model, rows, trace.requests)


@settings(max_examples=8)
@given(tokens=st.integers(1, 300), seed=st.integers(0, 20))
def test_load_sums_to_assignments(model: MoEModel, tokens: int, seed: int) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, tokens, seed=seed))
    result = analyze_load(trace)
    assert [layer.assignments for layer in result.per_layer] == [tokens * 3] * 3
    assert (result.load.sum(axis=1) == tokens * 3).all()
    np.testing.assert_array_equal(result.load, expert_load(trace))


@settings(max_examples=8)
@given(seed=st.integers(0, 20))
def test_renaming_experts_permutes_the_load(model: MoEModel, seed: int) -> None:
    rows, requests = synthesize_rows(model, 100, seed=seed)
    trace = Trace.in_memory(model, rows, requests)
    names = np.random.default_rng(seed).permutation(16).astype(np.uint8)
    renamed = analyze_load(with_experts(trace, model, names[rows.experts]))
    original = analyze_load(trace)
    np.testing.assert_array_equal(renamed.load[:, names], original.load)
    assert renamed.mean_imbalance == original.mean_imbalance
    for one, other in zip(renamed.per_layer, original.per_layer, strict=True):
        assert one.gini == pytest.approx(other.gini)
        assert one.entropy == pytest.approx(other.entropy)


def test_a_layer_that_uses_three_of_sixteen_experts(trace: Trace, model: MoEModel) -> None:
    experts = np.tile(np.array([0, 1, 2], np.uint8), (trace.tokens, 3, 1))
    layer = analyze_load(with_experts(trace, model, experts)).per_layer[0]
    assert layer.imbalance == pytest.approx(16 / 3)
    assert layer.balancedness == pytest.approx(3 / 16)
    assert layer.entropy == pytest.approx(np.log2(3))
    assert layer.gini == pytest.approx(1 - 3 / 16)
    assert layer.unused_experts == 13


def test_gini_is_the_mean_absolute_difference(trace: Trace) -> None:
    result = analyze_load(trace)
    load = result.load[0].astype(float)
    expected = np.abs(load[:, None] - load).mean() / (2 * load.mean())
    assert result.per_layer[0].gini == pytest.approx(expected)


def test_phases_and_labels_count_their_own_tokens(trace: Trace, model: MoEModel) -> None:
    result = analyze_load(trace)
    assert set(result.per_phase) == {"prefill", "decode"}
    assert set(result.per_label) == {"a", "b"}
    keep = trace.label == "a"
    loads = np.stack([np.bincount(trace.experts(n)[keep].ravel(), minlength=16) for n in (1, 2, 3)])
    expected = (loads.max(axis=1) / loads.mean(axis=1)).mean()
    assert result.per_label["a"] == pytest.approx(expected)


def test_gpu_loads_are_those_of_consecutive_experts(trace: Trace) -> None:
    result = analyze_load(trace, gpus=4)
    np.testing.assert_array_equal(result.load, expert_load(trace).reshape(3, 4, 4).sum(axis=2))
    with pytest.raises(InputError, match="do not divide"):
        analyze_load(trace, gpus=5)


def test_windows_cover_every_token_once(trace: Trace) -> None:
    result = analyze_load(trace, windows=7)
    assert result.window_tokens == 86
    assert len(result.over_time) == 7


def test_tokens_without_a_layer_do_not_count_there(model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 100)
    recorded = np.ones((100, 3), bool)
    recorded[40:, 1] = False
    trace = Trace.in_memory(model, TokenRows(**{**vars(rows), "recorded": recorded}))
    assert [layer.assignments for layer in analyze_load(trace).per_layer] == [300, 120, 300]


def test_counts_are_enough_for_load(tmp_path, model: MoEModel) -> None:  # type: ignore[no-untyped-def]
    counts = np.random.default_rng(1).integers(1, 9, (2, 3, 16))
    write_counts(tmp_path / "t", model, counts)
    result = analyze_load(open_trace(tmp_path / "t"))
    np.testing.assert_array_equal(result.load, counts.sum(axis=0))
    assert result.per_phase == {}
    assert result.by_request is None and result.per_step == []


def test_counts_by_group_and_window_each_sum_to_the_whole(trace: Trace) -> None:
    counts = count_experts(trace, 7)
    np.testing.assert_array_equal(counts.total, expert_load(trace))
    np.testing.assert_array_equal(counts.by_window.sum(axis=0), counts.total)
    assert len(counts.by_group) == len(set(zip(counts.phases, counts.labels, strict=True))) == 4
    for parts in (counts.by_phase(), counts.by_label()):
        np.testing.assert_array_equal(sum(parts.values()), counts.total)


def test_tokens_without_phase_or_label_are_under_no_name(model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 90, requests=3, labels=("a", "b", "c"))
    phase = np.full(90, Phase.UNKNOWN, np.int8)
    some = [requests[0], replace(requests[1], label=None)]  # nothing is known of the third
    trace = Trace.in_memory(model, replace(rows, phase=phase), some)
    counts = count_experts(trace, 1)
    assert counts.by_phase() == {}
    assert set(counts.by_label()) == {"a"}
    assert counts.by_label()["a"].sum() == 30 * 3 * 3
    assert counts.total.sum() == 90 * 3 * 3


def test_an_id_that_names_no_expert_is_refused() -> None:
    damaged = with_foreign_id()
    words = "in layer 2 an expert id is not below 16, .* look at the rows"
    for analysis in (analyze_load, expert_load):
        with pytest.raises(TraceError, match=words):
            analysis(damaged)
    damaged.path = Path("run.moetrace")
    with pytest.raises(TraceError, match=r"^run\.moetrace: .* see moeprof validate run\.moetrace$"):
        analyze_load(damaged)


def test_no_windows_are_refused(trace: Trace) -> None:
    with pytest.raises(InputError, match="windows = 0: at least 1 is needed"):
        analyze_load(trace, windows=0)


def test_variation_and_jain_are_those_of_the_textbook(trace: Trace) -> None:
    for layer, load in zip(analyze_load(trace).per_layer, expert_load(trace), strict=True):
        assert layer.coefficient_of_variation == pytest.approx(load.std() / load.mean())
        jain = load.sum() ** 2 / (len(load) * (load**2).sum())
        assert layer.jain == pytest.approx(jain)


def test_the_interval_of_the_imbalance_shrinks_with_requests(model: MoEModel) -> None:
    def wide(requests: int) -> float:
        made = synthesize_rows(model, 30 * requests, requests=requests, skew=1.0)
        by_request = analyze_load(Trace.in_memory(model, *made)).by_request
        assert by_request and by_request.imbalance
        return by_request.imbalance.high - by_request.imbalance.low

    assert wide(128) < wide(8)
