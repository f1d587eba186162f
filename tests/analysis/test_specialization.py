"""Specialization is seen where it is and not where it is not."""

from __future__ import annotations

import numpy as np
import pytest

from moeprof.analysis import analyze_specialization
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import TokenRows, Trace, synthesize_rows


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
