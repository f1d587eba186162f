"""Coverage counted by hand, twins that are found, and ESFT's rule as its script applies it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from moeprof.analysis.pruning import analyze_pruning, choose_experts
from moeprof.analysis.pruning.coverage import coverage_by_pruned, order_experts
from moeprof.analysis.pruning.sums import split_in_halves, sum_domains
from moeprof.errors import InputError, TraceError
from moeprof.model import MoEModel
from moeprof.trace import TokenRows, Trace, synthesize_rows
from tests.analysis.comparison.test_compare import with_experts
from tests.analysis.damage import with_foreign_id

LOADS = arrays(np.int64, (3, 8), elements=st.integers(0, 50))


def test_coverage_is_counted_on_the_other_half(trace: Trace) -> None:
    result = analyze_pruning(trace, keep=10, seed=3)
    halves = split_in_halves(trace, 3)
    judged = halves.group // len(halves.domains) == 1
    kept, total = 0, 0
    for gone, layer in zip(result.pruned, trace.layers, strict=True):
        fitted = np.bincount(trace.experts(layer)[~judged].ravel(), minlength=16)
        assert max(fitted[gone.experts]) <= min(np.delete(fitted, gone.experts))
        kept += int((~np.isin(trace.experts(layer)[judged], gone.experts)).sum())
        total += int(judged.sum()) * 3
    assert result.suggested.coverage == pytest.approx(kept / total)
    assert result.suggested.by_chance == 10 / 16


def test_halves_are_whole_requests_of_every_domain(trace: Trace) -> None:
    halves = split_in_halves(trace, 0)
    half, domain = np.divmod(halves.group, len(halves.domains))
    for request in range(6):
        assert len(np.unique(half[trace.request == request])) == 1
    assert {tuple(pair) for pair in zip(half, domain, strict=True)} == {
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    }
    sums = sum_domains(trace, halves)
    assert sums.counts.sum() == 600 * 3 * 3


def test_experts_that_nobody_uses_go_for_nothing(trace: Trace) -> None:
    experts = np.random.default_rng(0).permuted(np.tile(np.arange(8), (600, 3, 1)), axis=2)[
        :, :, :3
    ]
    experts[:, 1] += 8
    result = analyze_pruning(with_experts(trace, experts), keep=8)
    assert result.suggested.coverage == result.suggested.worst_coverage == 1
    assert [layer.experts for layer in result.pruned] == [
        list(range(8, 16)),
        list(range(8)),
        list(range(8, 16)),
    ]


def test_a_domain_that_was_not_there_suffers_more(model: MoEModel) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 4000, requests=40, skew=2.0))
    for row in analyze_pruning(trace).rows:
        assert row.unseen_coverage is not None and row.unseen_coverage < row.worst_coverage
        assert row.worst_coverage <= row.coverage


def test_keeping_for_one_domain_costs_the_other(model: MoEModel) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 4000, requests=40, skew=2.0))
    mine = analyze_pruning(trace, domain="a", keep=8).suggested
    both = analyze_pruning(trace, keep=8).suggested
    assert mine.coverage > both.coverage
    assert mine.worst_domain == "b" and mine.worst_coverage < both.worst_coverage
    assert [t.domain for t in analyze_pruning(trace, domain="a").targets] == ["a"]


def test_the_suggestion_serves_every_domain(model: MoEModel) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 4000, requests=40, skew=2.0))
    best = analyze_pruning(trace).suggested
    assert best.worst_coverage >= 0.95
    assert analyze_pruning(trace, keep=best.kept - 1).suggested.worst_coverage < 0.95


def test_bytes_saved_are_those_of_the_experts(trace: Trace) -> None:
    saved = analyze_pruning(trace, keep=12, format="fp8").suggested.bytes_saved
    assert saved == 4 * 3 * trace.model.bytes_per_expert("fp8")
    bare = MoEModel("x", "x", 1, 4, (1, 2, 3), 16, 3)
    (rows,) = trace.rows()
    assert analyze_pruning(Trace.in_memory(bare, rows)).suggested.bytes_saved is None


def test_gate_weight_is_judged_where_it_was_recorded(trace: Trace) -> None:
    (rows,) = trace.rows()
    weights = np.zeros(rows.experts.shape, np.float16)
    weights[:, :, 0] = 1  # all weight on the first choice
    gated = Trace.in_memory(
        trace.model, TokenRows(**{**vars(rows), "weights": weights}), trace.requests
    )
    result = analyze_pruning(gated, keep=10)
    judged = split_in_halves(gated, 0).group // 2 == 1
    first = [
        (~np.isin(rows.experts[judged, place, 0], gone.experts)).mean()
        for place, gone in enumerate(result.pruned)
    ]
    assert result.suggested.gate_weight == pytest.approx(np.mean(first))
    assert {target.score for target in result.targets} == {"gate"}


@given(LOADS, st.integers(1, 3))
@settings(max_examples=30)
def test_coverage_falls_and_pooling_never_loses_on_what_it_was_fitted_to(
    load: NDArray[np.int64], top_k: int
) -> None:
    load = load + (load.sum(axis=1, keepdims=True) == 0)  # a layer without load has no shares
    order = order_experts(load, top_k)
    kept = coverage_by_pruned(load, order.by_layer)
    assert kept[0] == 1 and kept[-1] == pytest.approx(0) and (np.diff(kept) <= 1e-12).all()
    shares = load / load.sum(axis=1, keepdims=True)
    for pruned in range(1, 8 - top_k + 1):
        pooled = 1 - shares.ravel()[order.pooled[: 3 * pruned]].sum() / 3
        assert pooled >= kept[pruned] - 1e-12
    left = np.ones(24, bool)
    left[order.pooled] = False
    assert (left.reshape(3, 8).sum(axis=1) == top_k).all()


@given(LOADS, st.floats(0.05, 1))
@settings(max_examples=30)
def test_adapted_experts_are_those_of_the_rule(load: NDArray[np.int64], share: float) -> None:
    chosen = choose_experts(load, share)
    for scores, row in zip(load, chosen, strict=True):
        selected, reached = set(), 0.0
        for expert in np.argsort(-scores, kind="stable"):
            if reached >= share * scores.sum() - 1e-9:
                break
            selected.add(int(expert))
            reached += scores[expert]
        assert set(np.flatnonzero(row).tolist()) == selected


def test_targets_get_what_they_were_chosen_for(model: MoEModel) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 4000, requests=40, skew=2.0))
    for target in analyze_pruning(trace, share=0.5).targets:
        assert target.held_out == pytest.approx(0.55, abs=0.12)
        assert target.held_out is not None and target.elsewhere is not None
        assert target.elsewhere < target.held_out
        assert target.experts == sum(len(layer.experts) for layer in target.per_layer)


def test_twins_are_found(model: MoEModel) -> None:
    """Of what a token is, layers 1 and 3 tell; so does layer 2, where 3 and 7 take turns."""
    rows, requests = synthesize_rows(model, 6000, requests=60, labels=("x",))
    rng = np.random.default_rng(0)
    subject = np.repeat(rng.integers(0, 5, 600), 10)
    experts = np.repeat((subject[:, None, None] * 3 + np.arange(3)), 3, axis=1)
    experts[:, 1, 1:] = rng.permuted(np.tile(np.arange(8, 16), (6000, 1)), axis=1)[:, :2]
    experts[:, 1, 0] = np.where((subject == 3) & (rng.random(6000) < 0.5), 7, subject)
    merge = analyze_pruning(with_experts(Trace.in_memory(model, rows, requests), experts)).merge
    assert merge is not None
    twins = next(pair for pair in merge.pairs if pair.layer == 2)
    assert twins.experts == [3, 7] and twins.together == 0
    assert twins.similarity > 0.95 and merge.typical < 0.5


def test_contexts_of_independent_layers_are_alike_by_chance_alone(model: MoEModel) -> None:
    trace = Trace.in_memory(
        model, *synthesize_rows(model, 6000, requests=60, labels=("x",), repeat=0.0)
    )
    merge = analyze_pruning(trace).merge
    assert merge is not None and abs(merge.typical) < 0.1
    assert np.mean([abs(pair.similarity) for pair in merge.pairs]) < 0.4
    assert np.mean([pair.fitted - pair.similarity for pair in merge.pairs]) > 0.1  # the optimism


def test_a_domain_of_one_request_is_not_judged(model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 300, requests=3, labels=("a",))
    alone = [type(r)(r.index, "b" if r.index == 2 else "a") for r in requests]
    result = analyze_pruning(Trace.in_memory(model, rows, alone))
    judged = {target.domain: target.held_out for target in result.targets}
    assert judged.get("b") is None and judged["a"] is not None


def test_one_request_is_cut_in_the_middle(model: MoEModel) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 400, requests=1))
    result = analyze_pruning(trace)
    assert result.judged_on == "the later half of its tokens" and result.requests == 1


def test_bad_arguments_are_refused(trace: Trace) -> None:
    with pytest.raises(InputError, match="a layer keeps from 3, its top-k, to 16"):
        analyze_pruning(trace, keep=2)
    with pytest.raises(InputError, match="share = 0: above 0"):
        analyze_pruning(trace, share=0)
    with pytest.raises(InputError, match="no label 'c'; there are a, b"):
        analyze_pruning(trace, domain="c")
    with pytest.raises(InputError, match="fp7"):
        analyze_pruning(trace, format="fp7")
    with pytest.raises(TraceError, match="not below 16"):
        analyze_pruning(with_foreign_id())
