"""Intervals, p-values and q-values against textbook answers and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from moeprof.analysis.uncertainty import (
    benjamini_hochberg,
    bootstrap,
    draw_requests,
    interval_of,
    permutation_p,
    permutation_ps,
)
from moeprof.errors import InputError


def test_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    found = bootstrap(lambda weights: float(weights @ values) / 400, 400, resamples=2000)
    error = values.std() / np.sqrt(400)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert found.unit_of_resampling == "requests"


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        clusters = rng.normal(size=40)  # tokens of a request are alike: only requests are drawn
        found = bootstrap(lambda w, x=clusters: float(w @ x) / 40, 40, seed=trial)
        covered += found.low <= 0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_basic_interval_turns_bias_around() -> None:
    found = interval_of(np.linspace(3, 5, 201), observed=3.0, kind="basic")
    assert (found.low, found.high) == pytest.approx((1.05, 2.95))
    with pytest.raises(InputError, match="needs the observed value"):
        interval_of(np.ones(3), kind="basic")


def test_strata_are_drawn_among_themselves() -> None:
    strata = np.array([0, 0, 0, 1, 2, 2])
    drawn = draw_requests(6, resamples=50, strata=strata)
    for name, size in ((0, 3), (1, 1), (2, 2)):
        assert (drawn[:, strata == name].sum(axis=1) == size).all()
    assert (drawn == draw_requests(6, resamples=50, strata=strata)).all()


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(InputError, match="0 requests, 200 resamples"):
        draw_requests(0)


def test_p_counts_the_observed_value() -> None:
    assert permutation_p(3.0, [1.0, 2.0, 3.0, 4.0]) == 3 / 5
    assert permutation_p(9.0, np.zeros(199)) == 1 / 200
    np.testing.assert_array_equal(permutation_ps([0.5, 2.0], [[1, 1], [0, 1]]), [2 / 3, 1 / 3])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_q_values_are_scipys(p: list[float]) -> None:
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p))


def test_what_was_not_tested_stays_out() -> None:
    q = benjamini_hochberg([[0.01, np.nan], [0.04, 0.5]])
    np.testing.assert_allclose(q, [[0.03, np.nan], [0.06, 0.5]])
