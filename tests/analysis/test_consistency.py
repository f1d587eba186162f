"""SRP and SCH are what their paper's own code gives, and what plain loops find."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moeprof.analysis.consistency import best_group, use_histogram
from moeprof.analysis.segment_cache import cache_hits

EXPERTS = 6


def drawn_ids(seed: int, tokens: int, experts: int, k: int) -> NDArray[np.uint8]:
    """[tokens, k] distinct ids, some experts liked more than others."""
    rng = np.random.default_rng(seed)
    taste = np.log(np.arange(1, experts + 1)) + rng.gumbel(size=(tokens, experts))
    return np.argsort(taste, axis=1)[:, :k].astype(np.uint8)


@given(seed=st.integers(0, 999), length=st.sampled_from([2, 4, 8]))
def test_srp_is_the_best_f1_of_a_fixed_group(seed: int, length: int) -> None:
    """Every threshold tried by a plain loop over segments and experts."""
    ids = drawn_ids(seed, 20, EXPERTS, 2)
    begins = np.arange(len(ids) - length + 1)
    places = begins[:, None] + np.arange(length)
    segments = [ids[begin : begin + length].ravel().tolist() for begin in begins]
    best = 0.0
    for threshold in range(length + 1):
        groups = [[e for e in range(EXPERTS) if s.count(e) >= threshold] for s in segments]
        served = sum(s.count(e) for s, group in zip(segments, groups, strict=True) for e in group)
        taken = length * sum(map(len, groups))
        best = max(best, 2 * served / (taken + sum(map(len, segments))))
    histogram = use_histogram(ids, np.ones(len(ids), bool), places, EXPERTS)
    assert histogram.sum() == len(segments) * EXPERTS
    assert best_group(histogram, 2)[0] == pytest.approx(best)


def test_one_group_for_all_is_perfect() -> None:
    ids = np.tile(np.array([[3, 5]], np.uint8), (10, 1))
    histogram = use_histogram(ids, np.ones(10, bool), np.arange(10).reshape(2, 5), EXPERTS)
    assert best_group(histogram, 2) == (1.0, 2.0)


def test_a_segment_with_a_token_that_was_not_recorded_counts_nowhere() -> None:
    ids, there = drawn_ids(1, 8, EXPERTS, 2), np.arange(8) != 5
    places = np.arange(8).reshape(2, 4)
    alone = use_histogram(ids, np.ones(8, bool), places[:1], EXPERTS)
    assert (use_histogram(ids, there, places, EXPERTS) == alone).all()


@pytest.mark.parametrize(
    ("seed", "tokens", "experts", "k", "ahead", "hits"),
    [
        (1, 60, 8, 2, 4, [24, 65, 89, 102, 112, 118, 120, 120]),
        (2, 120, 12, 4, 16, [43, 134, 210, 269, 321, 361, 402, 428, 446, 464, 473, 480]),
        (3, 40, 8, 2, 1, [15, 35, 46, 56, 64, 70, 74, 80]),
        (4, 100, 6, 3, 64, [50, 125, 185, 230, 264, 300]),
    ],
)
def test_sch_is_what_its_paper_counts(
    seed: int, tokens: int, experts: int, k: int, ahead: int, hits: list[int]
) -> None:
    """Hits at 1, 2, ... slots as `calc_fsf` of ljcleo/moe-lrc at 4ff45dd counts them."""
    ids = drawn_ids(seed, tokens, experts, k)
    slots = np.arange(1, experts + 1)
    steps = np.repeat(ids[:, None], experts, axis=1)
    assert cache_hits(steps, experts, slots, ahead).tolist() == hits
