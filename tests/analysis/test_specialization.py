"""Specialization is seen where it is and not where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy

from moeprof.analysis import analyze_specialization
from moeprof.analysis.counting import count_assignments
from moeprof.analysis.specialization import domain_divergence, shuffled_divergence
from moeprof.errors import InputError, TraceError
from moeprof.model import MoEModel
from moeprof.trace import TokenRows, Trace, synthesize_rows
from tests.analysis.damage import with_foreign_id


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
    np.testing.assert_array_equal(result.per_layer, domain_divergence(counts, domain, 2))
    assert result.null == null.mean()


def test_no_shuffles_are_refused(trace: Trace) -> None:
    with pytest.raises(InputError, match="shuffles = 0: at least 1 is needed"):
        analyze_specialization(trace, shuffles=0)


def test_an_id_that_names_no_expert_is_refused() -> None:
    with pytest.raises(TraceError, match="in layer 2 an expert id is not below 16"):
        analyze_specialization(with_foreign_id())
