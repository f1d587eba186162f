"""A recording beside itself, beside a shifted one, and two halves of one workload."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon

from moeprof.analysis import analyze_load, analyze_locality, analyze_specialization
from moeprof.analysis.comparison import compare_traces, router_saturation
from moeprof.analysis.comparison.differences import judge_together
from moeprof.analysis.counting import expert_load
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import Request, TokenRows, Trace, open_trace, synthesize_rows, write_counts
from tests.conftest import small_config


def with_experts(trace: Trace, experts: NDArray[np.integer], **other: object) -> Trace:
    """`trace` with other experts [tokens, layers, k]."""
    (rows,) = trace.rows()
    changed = {**vars(rows), "experts": experts.astype(np.uint8), **other}
    return Trace.in_memory(trace.model, TokenRows(**changed), trace.requests)


def experts_of(trace: Trace) -> NDArray[np.integer]:
    return np.stack([trace.experts(layer) for layer in trace.layers], axis=1)


def part_of(trace: Trace, members: NDArray[np.integer]) -> Trace:
    """The requests `members` of `trace`."""
    (rows,) = trace.rows()
    keep = np.isin(rows.request, members)
    kept = {name: None if part is None else part[keep] for name, part in vars(rows).items()}
    requests = [request for request in trace.requests if request.index in members]
    return Trace.in_memory(trace.model, TokenRows(**kept), requests)


def test_a_recording_beside_itself_shows_nothing(trace: Trace) -> None:
    result = compare_traces(trace, trace, same_tokens=True)
    assert result.paired
    assert all(found.effect == 0 and found.p == 1 for found in result.differences)
    assert not any(found.significant for found in result.differences)
    assert result.divergence is not None and result.divergence.value == 0
    assert result.divergence.p == 1
    assert result.agreement is not None
    assert (result.agreement.agreement, result.agreement.exact) == (1, 1)
    assert result.agreement.chance["agreement"] < 0.5


def test_figures_are_those_of_the_analyses(trace: Trace) -> None:
    found = {d.metric: d.a for d in compare_traces(trace, trace).differences if d.layer is None}
    load = analyze_load(trace)
    assert found["mean_imbalance"] == pytest.approx(load.mean_imbalance)
    assert found["gini"] == pytest.approx(np.mean([layer.gini for layer in load.per_layer]))
    assert found["entropy"] == pytest.approx(np.mean([layer.entropy for layer in load.per_layer]))
    repeat = analyze_locality(trace).next_token_repeat
    assert found["next_token_repeat"] == pytest.approx(repeat)
    apart = analyze_specialization(trace, shuffles=1).specialization
    assert found["specialization"] == pytest.approx(apart, rel=1e-4)


def test_divergence_is_that_of_scipy(model: MoEModel, trace: Trace) -> None:
    other = Trace.in_memory(model, *synthesize_rows(model, 500, requests=5, seed=9))
    result = compare_traces(trace, other)
    expected = jensenshannon(expert_load(trace), expert_load(other), base=2, axis=1) ** 2
    assert result.divergence is not None and not result.paired
    values = [layer.value for layer in result.divergence.per_layer]
    np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_a_planted_shift_is_found_where_it_is(model: MoEModel) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 6000, requests=60, labels=("x",)))
    experts = experts_of(trace)
    hit = np.random.default_rng(0).random(len(experts)) < 0.1
    experts[hit, 1] = [0, 1, 2]  # of layer 2 alone
    result = compare_traces(trace, with_experts(trace, experts), same_tokens=True)
    assert result.divergence is not None and result.agreement is not None
    assert [x.layer for x in result.divergence.per_layer if x.significant] == [2]
    assert [d.layer for d in result.differences if d.layer and d.significant] == [2]
    by_layer = {layer.layer: layer.agreement for layer in result.agreement.per_layer}
    same = np.isin(experts[:, 1], trace.experts(2)).mean()
    assert by_layer[1] == by_layer[3] == 1 and by_layer[2] < min(1, same)


def test_intervals_hold_the_effect_and_narrow_with_requests(model: MoEModel) -> None:
    widths = []
    for requests in (12, 120):
        one, other = (
            Trace.in_memory(
                model, *synthesize_rows(model, 50 * requests, requests=requests, seed=s)
            )
            for s in (1, 2)
        )
        found = compare_traces(one, other).differences[0]
        assert found.low is not None and found.high is not None
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_halves_of_one_workload_differ_as_often_as_stated(model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 800, requests=40, labels=("x",))
    trace = Trace.in_memory(model, rows, requests)
    rng, p = np.random.default_rng(0), []
    for _ in range(16):
        order = rng.permutation(40)
        result = compare_traces(part_of(trace, order[:20]), part_of(trace, order[20:]))
        assert not result.paired and result.divergence is not None
        p.append([result.differences[0].p, result.divergence.p])
    rate = (np.array(p, float) <= 0.1).mean(axis=0)
    assert (rate <= 0.3).all()  # 1.6 of 16 expected, 5 or more in 1.7 % of such tests
    assert 0.3 < np.mean(np.array(p, float)) < 0.7


def test_without_ids_only_prompts_are_known_to_be_the_same(trace: Trace) -> None:
    result = compare_traces(trace, trace)
    assert result.agreement is not None
    assert result.agreement.tokens == (trace.phase == 0).sum()


def test_ids_tell_where_answers_part(trace: Trace) -> None:
    ids = np.arange(600, dtype=np.int32)
    other = ids.copy()
    first = [int(np.flatnonzero(trace.request == request)[0]) for request in range(6)]
    for row in first:
        other[row + 20] = 999  # and what follows is of another text, whatever its ids
    a = with_experts(trace, experts_of(trace), token_id=ids)
    b = with_experts(trace, experts_of(trace), token_id=other)
    agreement = compare_traces(a, b).agreement
    assert agreement is not None and agreement.tokens == 6 * 20


def test_agreement_counts_shared_experts(trace: Trace) -> None:
    experts = experts_of(trace)
    other = np.random.default_rng(0).permuted(np.tile(np.arange(16), (600, 3, 1)), axis=2)[:, :, :3]
    agreement = compare_traces(trace, with_experts(trace, other), same_tokens=True).agreement
    shared = [
        len(set(a) & set(b)) / 3
        for a, b in zip(experts.reshape(-1, 3), other.reshape(-1, 3), strict=True)
    ]
    assert agreement is not None and agreement.agreement == pytest.approx(np.mean(shared))
    assert agreement.chance["agreement"] == pytest.approx(3 / 16, abs=0.03)
    assert agreement.exact == pytest.approx(np.mean(np.array(shared) == 1))


def test_first_choices_are_compared_where_their_order_was_recorded(trace: Trace) -> None:
    a, b = (with_experts(trace, experts_of(trace)[:, :, order]) for order in ([0, 1, 2], [1, 0, 2]))
    result = compare_traces(a, b, same_tokens=True).agreement
    assert result is not None and result.first is None and result.exact == 1
    a.manifest.rank_ordered = b.manifest.rank_ordered = True
    result = compare_traces(a, b, same_tokens=True).agreement
    assert result is not None and result.first == 0 and result.agreement == 1


def test_saturation_is_agreement_with_the_last(trace: Trace, model: MoEModel) -> None:
    experts = experts_of(trace)
    half = experts.copy()
    half[::2] = [13, 14, 15]
    result = router_saturation([with_experts(trace, half), trace, trace], same_tokens=True)
    expected = 0.5 + np.isin(experts[::2], [13, 14, 15]).mean() / 2
    assert [c.saturation for c in result.checkpoints] == pytest.approx([expected, 1])
    other = Trace.in_memory(model, *synthesize_rows(model, 500, requests=5))
    with pytest.raises(InputError, match="not known to be of the same tokens"):
        router_saturation([other, trace])
    with pytest.raises(InputError, match="two checkpoints at least"):
        router_saturation([trace])


def test_other_models_are_compared_over_even_routers(trace: Trace) -> None:
    model = MoEModel.from_config(small_config(layers=6, experts=32, top_k=4))
    other = Trace.in_memory(model, *synthesize_rows(model, 600, requests=6))
    result = compare_traces(trace, other)
    assert result.divergence is None and result.agreement is None
    names = {found.metric for found in result.differences}
    assert {"mean_imbalance", "normalized_entropy", "repeat_over_even"} <= names
    assert "3 layers of 16 experts" in result.not_compared[0]
    assert all(found.layer is None for found in result.differences)


def test_one_request_shows_no_spread(model: MoEModel) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 50, requests=1))
    result = compare_traces(trace, trace)
    assert all(d.low is None and d.p is None and not d.significant for d in result.differences)
    assert any("no spread" in words for words in result.not_compared)


def test_counts_are_compared_as_far_as_they_tell(
    tmp_path: Path, model: MoEModel, trace: Trace
) -> None:
    write_counts(tmp_path / "counts.moetrace", model, expert_load(trace)[None])
    result = compare_traces(trace, open_trace(tmp_path / "counts.moetrace"))
    found = {d.metric: d.effect for d in result.differences if d.layer is None}
    assert found.keys() == {"mean_imbalance", "gini", "entropy"}
    assert all(effect == pytest.approx(0, abs=1e-6) for effect in found.values())
    assert result.divergence is not None and result.divergence.p is None
    assert result.agreement is None


def test_same_seed_same_result(trace: Trace, model: MoEModel) -> None:
    other = Trace.in_memory(model, *synthesize_rows(model, 500, requests=5, seed=9))
    assert compare_traces(trace, other) == compare_traces(trace, other)
    assert compare_traces(trace, other) != compare_traces(trace, other, seed=1)


def test_an_empty_recording_is_refused(model: MoEModel, trace: Trace) -> None:
    rows, _ = synthesize_rows(model, 1)
    none = {name: None if part is None else part[:0] for name, part in vars(rows).items()}
    with pytest.raises(InputError, match="no tokens to compare"):
        compare_traces(trace, Trace.in_memory(model, TokenRows(**none)))


def test_requests_of_other_prompts_are_not_pairs(model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 600, requests=6)
    longer = [Request(r.index, r.label, prompt_tokens=7) for r in requests]
    one, other = Trace.in_memory(model, rows, requests), Trace.in_memory(model, rows, longer)
    assert not compare_traces(one, other).paired


def test_q_values_rise_with_p(trace: Trace, model: MoEModel) -> None:
    other = Trace.in_memory(model, *synthesize_rows(model, 500, requests=5, seed=9))
    found = [d for d in compare_traces(trace, other).differences if d.layer is None]
    ordered = sorted(judge_together(found), key=lambda d: d.p or 0)
    assert all((x.q or 0) <= (y.q or 0) for x, y in pairwise(ordered))
    assert all((d.q or 0) >= (d.p or 0) for d in ordered)
