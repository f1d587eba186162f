"""The collectors' skew: their rules a unit at a time, and what was published of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.projection.moe_kernels.timed_routings import power_law_counts as timed_counts
from moeprof.projection.routing import PowerLawRouting, Shape, UniformRouting
from moeprof.projection.routing.power_law import _inverse, _raise_lowest, power_law_counts


def raised_one_by_one(counts: list[list[int]], amount: int, most: int) -> list[list[int]]:
    """A unit to the lowest of each group in turn, groups that are full left out."""
    counts = [list(group) for group in counts]
    while amount:
        for group in counts:
            if amount and min(group) < most:
                group[group.index(min(group))] += 1
                amount -= 1
    return counts


@given(
    counts=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=2, max_size=4),
    share=st.floats(0, 1),
)
def test_units_go_round_the_ranks(counts: list[list[int]], share: float) -> None:
    most = 9
    amount = int(share * sum(most - count for group in counts for count in group))
    slow = raised_one_by_one(counts, amount, most)
    fast = _raise_lowest(np.array([counts]), np.array([amount]), most)[0]
    assert np.sort(fast, axis=1).tolist() == np.sort(slow, axis=1).tolist()


@given(
    tokens=st.integers(1, 600),
    alpha=st.sampled_from([0.0, 1.0, 1.01, 1.2, 2.5]),
    ranks=st.sampled_from([1, 2, 8, 16, 5]),
)
def test_every_assignment_is_some_experts(tokens: int, alpha: float, ranks: int) -> None:
    shape = Shape(1, 16, 4)
    counts = power_law_counts(shape, tokens, ranks, alpha, 20, np.random.default_rng(0))
    assert (counts.sum(axis=1) == tokens * 4).all()
    assert counts.min() >= 0
    assert counts.max() <= tokens


@pytest.mark.parametrize("alpha", [1.01, 1.2, 2.5])
@pytest.mark.parametrize(
    ("tokens", "ranks"), [(1, 8), (20, 4), (32, 8), (33, 16), (700, 8), (90, 1)]
)
def test_it_is_the_routing_of_the_tables_draw_for_draw(
    tokens: int, ranks: int, alpha: float
) -> None:
    """Beside the kernel tables' own drawing, a draw and a unit at a time, from the same numbers."""
    shape, steps = Shape(1, 128, 4), 12
    fast = power_law_counts(shape, tokens, ranks, alpha, steps, np.random.default_rng(3))
    random = np.random.default_rng(3)
    for row in fast.reshape(steps, ranks, -1):
        slow = timed_counts(random, alpha, tokens, ranks, 128, 4).reshape(ranks, -1)
        both = (sorted(map(sorted, counts.tolist())) for counts in (row, slow))
        assert next(both) == next(both)


def test_the_law_is_drawn_by_its_inverse() -> None:
    """Below x lies the share (x^(1-a) - 1) / (most^(1-a) - 1), by numerical integration."""
    x = np.linspace(1, 50, 200_001)
    density = x**-1.2
    below = np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(x))
    shares = np.concatenate([[0], below / below[-1]])
    assert np.interp([0.1, 0.5, 0.9], shares, x) == pytest.approx(
        _inverse(np.array([0.1, 0.5, 0.9]), 1.2, 1, 50), rel=1e-4
    )


def test_m3_is_as_uneven_as_was_published_of_the_tables() -> None:
    """Token max/mean on 8 ranks: 1.43 to 1.73 at 1.01, 1.48 to 1.97 at 1.2, over their sweep."""
    m3 = Shape(57, 128, 4)
    at = [PowerLawRouting(m3).load(tokens, 8).imbalance for tokens in (128, 1024, 8192)]
    assert 1.4 < at[0] < at[1] < at[2] < 1.76
    steeper = [PowerLawRouting(m3, 1.2).load(tokens, 8).imbalance for tokens in (128, 1024)]
    assert 1.45 < steeper[0] < steeper[1] < 2.0


def test_skew_leaves_experts_out_where_even_routing_reads_all() -> None:
    m3 = Shape(57, 128, 4)
    skewed, even = PowerLawRouting(m3).load(256, 1), UniformRouting(m3).load(256, 1)
    assert skewed.distinct[0] < 0.9 * even.distinct[0]


@pytest.mark.parametrize("alpha", [-0.1, 3.1, float("nan")])
def test_an_exponent_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(InputError):
        PowerLawRouting(Shape(1, 8, 2), alpha)
