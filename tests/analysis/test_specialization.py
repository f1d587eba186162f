"""Specialization is seen where it is and not where it is not."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import entropy

from moeprof.analysis import analyze_specialization
from moeprof.analysis.counting import count_assignments
from moeprof.analysis.specialization import domain_divergence, shuffled_divergence
from moeprof.analysis.specialization.grouping import Assignments
from moeprof.analysis.specialization.specialists import expert_use, pooled_p_values
from moeprof.errors import InputError, TraceError
from moeprof.model import MoEModel
from moeprof.report.text.specialization import specialization_text
from moeprof.trace import Request, TokenRows, Trace, synthesize_rows
from tests.analysis.damage import with_foreign_id
from tests.recordings import recording


def test_domains_that_differ_exceed_the_null(model: MoEModel) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 4000, requests=40, skew=1.0))
    result = analyze_specialization(trace)
    assert result.specialization > 2 * result.null_p95
    assert result.p_value < 0.01


def test_domains_that_do_not_differ_stay_within_it(model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 4000, requests=40, labels=("x",), skew=1.0)
    halves = [type(r)(r.index, label="ab"[r.index % 2]) for r in requests]
    result = analyze_specialization(Trace.in_memory(model, rows, halves))
    assert result.p_value > 0.05


def test_disjoint_domains_diverge_by_the_entropy_of_the_label(model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 400, requests=4)
    experts = np.tile(np.array([0, 1, 2], np.uint8), (400, 3, 1))
    experts[rows.request % 2 == 1] += 3
    trace = Trace.in_memory(model, TokenRows(**{**vars(rows), "experts": experts}), requests)
    assert analyze_specialization(trace).specialization == pytest.approx(1.0)


def test_one_label_is_refused(model: MoEModel) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 10, labels=("only",)))
    with pytest.raises(InputError, match="at least two labels"):
        analyze_specialization(trace)


def test_divergence_is_that_of_the_summed_counts() -> None:
    rng = np.random.default_rng(0)
    counts, domain = rng.poisson(3.0, (50, 4, 16)), rng.integers(0, 3, 50)
    share = np.stack([counts[domain == d].sum(axis=0) for d in range(3)]).astype(float)
    share /= share.sum(axis=2, keepdims=True)
    parts = np.stack([entropy(part, base=2, axis=1) for part in share])
    expected = entropy(share.mean(axis=0), base=2, axis=1) - parts.mean(axis=0)
    np.testing.assert_allclose(domain_divergence(counts, domain, 3), expected)


def test_layer_by_layer_is_all_layers_at_once(trace: Trace) -> None:
    group = trace.request
    counts = count_assignments(trace, group, 6)
    domain = np.array([0, 1] * 3)
    null = shuffled_divergence(counts, domain, 2, shuffles=20, seed=3)
    result = analyze_specialization(trace, shuffles=20, seed=3)
    np.testing.assert_allclose(result.per_layer, domain_divergence(counts, domain, 2))
    assert result.null == pytest.approx(null.mean())


@pytest.mark.parametrize(
    ("labels", "smallest"), [("abcd", 1.0), ("aabb", 1 / 3), ("aaab", 1 / 4), ("aabbb", 1 / 10)]
)
def test_too_few_requests_to_tell_are_told(model: MoEModel, labels: str, smallest: float) -> None:
    """The smallest p is one over the ways to group the requests: here counted by hand."""
    rows, _ = synthesize_rows(model, 200, requests=len(labels), skew=1.0)
    trace = Trace.in_memory(model, rows, [Request(i, name) for i, name in enumerate(labels)])
    result = analyze_specialization(trace, shuffles=99)
    assert result.smallest_p == pytest.approx(smallest)
    text = specialization_text(result, "a path/it's")
    assert "cannot be told" in text and "by chance  beyond" not in text
    if smallest == 1:  # every shuffle is what was recorded
        assert result.p_value == 1
        assert "each has one request" in text
    assert shlex.split(text.splitlines()[-1])[-1] == "a path/it's"


def test_no_shuffles_are_refused(trace: Trace) -> None:
    with pytest.raises(InputError, match="shuffles = 0: at least 1 is needed"):
        analyze_specialization(trace, shuffles=0)


def test_an_id_that_names_no_expert_is_refused() -> None:
    with pytest.raises(TraceError, match="in layer 2 an expert id is not below 16"):
        analyze_specialization(with_foreign_id())


def drawn_trace(
    share: NDArray[np.float64], requests: int, tokens: int, seed: int, spread: float = 200.0
) -> Trace:
    """Requests of domain `i % domains` whose tokens choose one expert by `share` [domains, E].

    Each request leans its own way: its shares are drawn around its domain's, so that its tokens
    are not independent.
    """
    rng = np.random.default_rng(seed)
    domains, experts = share.shape
    model = MoEModel("drawn", "drawn", 1, 2, (0, 1), experts, 1)
    own = np.stack([rng.dirichlet(spread * share[i % domains], 2) for i in range(requests)])
    ids = np.stack([[rng.choice(experts, tokens, p=p) for p in of] for of in own])
    rows = TokenRows(
        step=np.arange(requests * tokens),
        request=np.repeat(np.arange(requests, dtype=np.int32), tokens),
        position=np.tile(np.arange(tokens, dtype=np.int32), requests),
        phase=None,
        experts=ids.transpose(0, 2, 1).reshape(-1, 2, 1).astype(np.uint8),
    )
    return Trace.in_memory(model, rows, [Request(i, "abcd"[i % domains]) for i in range(requests)])


EVEN = np.full((2, 8), 1 / 8)


def test_permuted_labels_show_no_specialization() -> None:
    found = [
        analyze_specialization(drawn_trace(EVEN, 16, 30, seed), shuffles=39, resamples=2)
        for seed in range(40)
    ]
    p = np.array([result.p_value for result in found])
    assert 0.35 < p.mean() < 0.65
    assert (p <= 0.1).mean() < 0.25
    assert abs(np.mean([result.excess for result in found])) < 0.004
    assert sum(result.specialists_found > 0 for result in found) <= 6  # 5 % of 40, and chance


def test_interval_covers_the_divergence_that_was_put_in() -> None:
    share = np.array([[4, 2, 1, 1, 1, 1, 1, 1], [1, 2, 1, 1, 1, 1, 1, 4]]) / 12
    truth = entropy(share.mean(axis=0), base=2) - entropy(share, base=2, axis=1).mean()
    found = [
        analyze_specialization(drawn_trace(share, 40, 40, seed), shuffles=2).interval
        for seed in range(20)
    ]
    assert sum(one.low <= truth <= one.high for one in found) >= 17


def test_specialist_is_the_expert_that_was_planted() -> None:
    share = np.full((3, 16), 1 / 16)
    share[1, 5], share[1, 6] = 3 / 16, 0.0  # for one domain's sake
    share[1] /= share[1].sum()
    result = analyze_specialization(drawn_trace(share.clip(1e-6), 60, 60, 1), shuffles=99)
    first = result.specialists[:2]
    assert {(one.domain, one.layer, one.expert) for one in first} == {("b", 0, 5), ("b", 1, 5)}
    assert first[0].lift == pytest.approx(3 / 16 / share[1].sum() / (1 / 16), rel=0.25)
    near, far = result.distances[0][2], result.distances[0][1]
    assert far > 0.02 > abs(near)


def test_use_is_that_of_a_loop_over_requests() -> None:
    rng = np.random.default_rng(5)
    counts, domain = rng.poisson(2.0, (12, 4)).astype(float), rng.integers(0, 3, 12)
    use = expert_use(counts, Assignments(domain[None], 3))
    for name, expert in [(0, 1), (2, 3)]:
        sides = []
        for mask in (domain == name, domain != name):
            size = counts[mask].sum(axis=1)
            share = counts[mask, expert].sum() / size.sum()
            residual = counts[mask, expert] - share * size
            n = mask.sum()
            sides.append((share, n / (n - 1) * (residual**2).sum() / size.sum() ** 2))
        (here, a), (there, b) = sides
        assert use.share[0, name, expert] == pytest.approx(here)
        assert use.elsewhere[0, name, expert] == pytest.approx(there)
        assert use.t[0, name, expert] == pytest.approx(abs(here - there) / np.sqrt(a + b))


def test_one_request_of_a_domain_is_no_evidence_for_specialists() -> None:
    counts = np.array([[9.0, 0.0], [5.0, 5.0], [4.0, 6.0]])
    use = expert_use(counts, Assignments(np.array([[0, 1, 1]]), 2))
    assert np.isnan(use.t).all()


def test_p_values_of_specialists_are_pooled_by_domain() -> None:
    null = np.array([[1.0, 2.0, np.nan], [30.0, 40.0, 50.0]])[None, None]
    t = np.array([[[1.5, 9.0, np.nan], [35.0, 9.0, 60.0]]])
    p = pooled_p_values(t, null)
    np.testing.assert_allclose(p, [[[2 / 3, 1 / 3, np.nan], [3 / 4, 1.0, 1 / 4]]])


def test_few_requests_of_many_domains_are_not_called_specialized() -> None:
    """gpt-oss-20b: 55 requests of nine datasets, of which most have fewer than seven."""
    result = analyze_specialization(recording("gpt-oss-20b"), shuffles=99)
    assert result.p_value > 0.05
    assert result.specialization > result.null > 0.2  # noise alone makes it large
    assert result.specialists_found < result.tests / 200
    assert result.specialists[0].domain == "sorry_bench_base"  # what the model refuses to do
