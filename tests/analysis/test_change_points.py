"""Shifts that were planted are found, those that chance makes are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2_contingency

from moeprof.analysis import analyze_load
from moeprof.analysis.change_points import _products, find_splits, split_statistics
from moeprof.model import MoEModel
from moeprof.trace import Trace, synthesize_rows


def blocks(rng: np.random.Generator, count: int, tilt: float = 0.0) -> NDArray[np.int64]:
    """[count, 2, 6] loads of requests that differ: a Dirichlet draw each, `tilt` to expert 0."""
    mean = np.ones(6) + np.array([tilt, 0, 0, 0, 0, 0])
    shares = rng.dirichlet(3 * mean, size=(count, 2))
    return np.stack([[rng.multinomial(200, share) for share in pair] for pair in shares])


def test_the_statistic_is_pearsons() -> None:
    load = blocks(np.random.default_rng(0), 9)[:, :1]
    statistics = split_statistics(*_products(load))
    for place, value in enumerate(statistics):
        sides = [load[: place + 2, 0].sum(axis=0), load[place + 2 :, 0].sum(axis=0)]
        assert value == pytest.approx(chi2_contingency(sides, correction=False).statistic)


def test_planted_shifts_are_found() -> None:
    rng = np.random.default_rng(1)
    load = np.concatenate([blocks(rng, 20), blocks(rng, 16, 12), blocks(rng, 14)])
    splits = find_splits(load)
    assert [block for block, _ in splits] == pytest.approx([20, 36], abs=1)
    assert all(p <= 0.05 / 7 for _, p in splits)


def test_requests_that_differ_are_no_shift() -> None:
    """Pearson's own p-value would find one almost always: tokens of a request are alike."""
    rng = np.random.default_rng(2)
    assert sum(bool(find_splits(blocks(rng, 24), seed)) for seed in range(12)) <= 1


def test_a_shift_in_a_recording_is_named_by_its_request(model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 1200, requests=30, prefill=0.0, skew=0.5, seed=3)
    order = np.argsort(rows.request, kind="stable")
    rows = rows.select(order)
    later = rows.request >= 18
    names = np.arange(model.experts)[::-1].astype(np.uint8)
    ids = np.where(later[:, None, None], names[rows.experts], rows.experts)
    trace = Trace.in_memory(model, replace(rows, experts=ids), requests)
    by_request = analyze_load(trace).by_request
    assert by_request and by_request.change_points
    (change,) = by_request.change_points
    assert abs(change.request - 18) <= 1
    assert change.share == pytest.approx(0.6, abs=0.05)
    assert 0.05 < change.distance < 1


def test_few_requests_cannot_tell(model: MoEModel) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 300, requests=3))
    by_request = analyze_load(trace).by_request
    assert by_request and by_request.change_points is None and by_request.outlying is None
    assert by_request.imbalance and by_request.imbalance.unit_of_resampling != "requests"
