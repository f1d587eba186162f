"""Mutual information by hand, and its null against tables that were really shuffled."""

from __future__ import annotations

import numpy as np
import pytest

from moeprof.analysis.affinity.counting import count_following
from moeprof.analysis.affinity.information import entropy_bits, information_bits
from moeprof.analysis.affinity.transitions import Following, describe_transition
from tests.analysis.affinity.traces import independent, requests_of


def test_information_by_hand() -> None:
    assert information_bits(np.eye(4) * 7) == pytest.approx(2.0)
    assert information_bits(np.ones((4, 8))) == pytest.approx(0.0)
    assert information_bits(np.array([[3.0, 1], [1, 3]])) == pytest.approx(1 - 0.811278, abs=1e-6)
    assert entropy_bits(np.array([1.0, 1, 0, 2])) == pytest.approx(1.5)


@pytest.mark.parametrize(("tokens", "each"), [(60, 60), (240, 20), (2000, 100)])
def test_the_null_is_the_mean_of_shuffles_within_requests(tokens: int, each: int) -> None:
    rng = np.random.default_rng(tokens)
    request, size = requests_of(tokens, each), 16
    taste = rng.lognormal(0, 1, (request.max() + 1, size))[request]
    score = np.log(taste) + rng.gumbel(size=(2, tokens, size))
    before, after = np.argsort(-score, axis=2)[:, :, :3].astype(np.uint8)
    move, _ = describe_transition(
        0, 1, Following(before, after, request, np.zeros(tokens, np.int64), 1, size)
    )
    drawn = {"information_null_bits": request, "information_bias_bits": np.zeros_like(request)}
    for name, group in drawn.items():
        values = []
        for _ in range(60):
            order = np.lexsort((rng.random(tokens), group))
            values.append(information_bits(count_following(before, after[order], size) * 1.0))
        spread = 4 * np.std(values) / np.sqrt(60) + 0.03 * np.mean(values)
        assert getattr(move, name) == pytest.approx(np.mean(values), abs=spread)


def test_what_a_layer_tells_is_in_bits() -> None:
    """The next layer repeats the expert: all of its entropy is told."""
    ids = independent(np.random.default_rng(0), 4000, np.ones(8), 1).astype(np.uint8)
    block = np.arange(4000) // 1000
    move, _ = describe_transition(0, 1, Following(ids, ids, block, block, 4, 8))
    assert move.information_bits == pytest.approx(3, abs=0.01)
    assert move.normalized_information == pytest.approx(1, abs=0.02)
    assert move.top1 == move.recall_k == 1.0
    assert move.top1_popularity == pytest.approx(1 / 8, abs=0.03)
