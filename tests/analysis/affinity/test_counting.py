"""The counts, against loops; and that prefetching counts transitions alike."""

from __future__ import annotations

import numpy as np
import pytest

from moeprof.analysis.affinity.counting import count_by_request, count_following, count_together
from moeprof.analysis.affinity.sample import sample_tokens
from moeprof.errors import InputError
from moeprof.trace import Phase
from tests.analysis.affinity.traces import independent, requests_of, trace_of


def test_counts_are_those_of_loops() -> None:
    rng = np.random.default_rng(0)
    before, after = (independent(rng, 200, np.ones(10), 3).astype(np.uint8) for _ in range(2))
    request = requests_of(200, 30)
    together, following = np.zeros((10, 10), int), np.zeros((10, 10), int)
    loads = np.zeros((7, 10), int)
    for token in range(200):
        for a in before[token]:
            loads[request[token], a] += 1
            for b in before[token]:
                together[a, b] += 1
            for b in after[token]:
                following[a, b] += 1
    np.testing.assert_array_equal(count_together(before, 10), together)
    np.testing.assert_array_equal(count_following(before, after, 10), following)
    np.testing.assert_array_equal(count_by_request(before, request, 7, 10), loads)


def test_prefetching_learns_the_same_transitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its Markov predictor, not compiled: that takes longer than to run it."""
    from moeprof.cache.prefetch.predictors import kernels

    monkeypatch.setattr(kernels, "_add_pairs", kernels._add_pairs.py_func)
    rng = np.random.default_rng(1)
    ids = np.stack([independent(rng, 80, np.ones(8), 2) for _ in range(3)]).astype(np.uint8)
    came, uses = np.zeros((3, 8, 8)), np.zeros((3, 8))
    kernels.learn_transitions.py_func(
        ids, np.ones((3, 80), bool), np.arange(81), 0, np.zeros(80, np.int64), 1,
        (np.full(1, -1, np.int64), np.full((1, 3, 2), -1, np.int64)), came, uses,
    )  # fmt: skip
    np.testing.assert_array_equal(came[0], count_following(ids[0], ids[1], 8))
    np.testing.assert_array_equal(came[1], count_following(ids[1], ids[2], 8))


def test_a_sample_is_of_whole_requests_and_blocks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeprof.analysis.affinity.sample.MOST_TOKENS", 500)
    monkeypatch.setattr("moeprof.analysis.affinity.sample.LEAST_REQUESTS", 10)
    ids = independent(np.random.default_rng(0), 2000, np.ones(8), 2)
    trace = trace_of([ids], 8, requests_of(2000, 20))
    sample = sample_tokens(trace, None, seed=3)
    assert (sample.requests_recorded, sample.requests, len(sample.rows)) == (100, 25, 500)
    assert (np.bincount(sample.request) == 20).all()
    for request in range(25):
        assert len(set(sample.block[sample.request == request])) == 1
    assert (np.diff(sample.block) >= 0).all()
    assert (sample_tokens(trace, None, seed=4).rows != sample.rows).any()


def test_few_long_requests_are_thinned_and_none_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeprof.analysis.affinity.sample.MOST_TOKENS", 500)
    ids = independent(np.random.default_rng(0), 2000, np.ones(8), 2)
    sample = sample_tokens(trace_of([ids], 8, requests_of(2000, 500)), None, seed=0)
    assert (sample.requests, sample.blocks, len(sample.rows)) == (4, 4, 500)


def test_one_request_is_judged_by_its_own_spans() -> None:
    ids = independent(np.random.default_rng(0), 100, np.ones(8), 2)
    sample = sample_tokens(trace_of([ids], 8, np.zeros(100, int)), None, seed=0)
    assert sample.spans and sample.blocks == 32


def test_too_few_tokens_are_refused() -> None:
    trace = trace_of([np.array([[0, 1]])], 8, np.zeros(1, int))
    with pytest.raises(InputError, match="holds 1 tokens, affinity needs at least two"):
        sample_tokens(trace, None, 0)
    with pytest.raises(InputError, match="holds 0 decode tokens"):
        sample_tokens(trace, Phase.DECODE, 0)
