"""Experts are called dead or hot only where the recording is long enough to say so."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from moeprof.analysis.outlying_experts import OutlyingExperts, outlying_experts, request_spread

EXPERTS = 16


def uses(
    requests: int, tokens: int, weights: NDArray[np.float64], *, copies: int = 1, seed: int = 0
) -> NDArray[np.int64]:
    """[requests, EXPERTS] top-1 uses of as many tokens each; `copies` of every token are alike."""
    rng = np.random.default_rng(seed)
    share = weights / weights.sum()
    return np.stack([rng.multinomial(tokens // copies, share) * copies for _ in range(requests)])


def found(load: NDArray[np.int64]) -> OutlyingExperts:
    return outlying_experts([3], [request_spread(load, 1)], 1)


def test_an_expert_is_dead_after_many_tokens_and_not_after_few() -> None:
    weights = np.ones(EXPERTS)
    weights[5] = 0
    long, short = found(uses(20, 20, weights)), found(uses(10, 6, weights))
    assert [(e.layer, e.expert, e.over_even) for e in long.dead] == [(3, 5, 0.0)]
    assert short.dead == [] and short.unused >= 1


def test_tokens_that_are_alike_do_not_count_twice() -> None:
    """400 tokens in tens of one kind are 40: the chance of a miss is no longer tiny."""
    weights = np.ones(EXPERTS)
    weights[5] = 0
    alike = found(uses(20, 20, weights, copies=10))
    assert alike.design_effect == pytest.approx(10, rel=0.3)
    assert alike.dead == [] and alike.unused >= 1


def test_an_expert_is_hot_well_above_twice_the_mean_alone() -> None:
    weights = np.ones(EXPERTS)
    weights[[1, 2]] = 6, 2.3  # over the mean: 4.5 and 1.7
    hot = found(uses(40, 50, weights)).hot
    assert [e.expert for e in hot] == [1]
    assert hot[0].over_even == pytest.approx(6 * EXPERTS / (6 + 2.3 + 14), rel=0.15)


def test_false_deaths_are_rare() -> None:
    """Even routing that is just too short to use every expert: none may be called dead."""
    for seed in range(50):
        assert found(uses(12, 5, np.ones(EXPERTS), seed=seed)).dead == []
