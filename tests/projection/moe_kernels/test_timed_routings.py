"""The collector's routings: its rule on small cases, and laws on all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.projection.moe_kernels.tables import ROUTINGS, TIMED_TOKENS, timed_work
from moeprof.projection.moe_kernels.timed_routings import (
    balanced_counts,
    draw_timed_rank,
    power_law_counts,
)

ANY = ("any device", "any engine", "any kernel", "bf16")


@given(
    tokens=st.integers(1, 300),
    ep=st.sampled_from([1, 2, 4, 8, 16]),
    exponent=st.sampled_from([0.5, 1.01, 1.2, 3.0]),
    seed=st.integers(0, 9),
)
def test_draws_are_routings_with_the_heaviest_rank_first(
    tokens: int, ep: int, exponent: float, seed: int
) -> None:
    counts = power_law_counts(np.random.default_rng(seed), exponent, tokens, ep, 16, 4)
    assert counts.sum() == 4 * tokens  # each token takes four experts,
    assert counts.min() >= 0 and counts.max() <= tokens  # none of them twice
    ranks = counts.reshape(ep, -1).sum(1)
    assert ranks[0] == ranks.max()


@given(tokens=st.integers(1, 200), top_k=st.sampled_from([1, 2, 4]))
def test_balanced_tokens_stride_over_the_experts(tokens: int, top_k: int) -> None:
    experts, stride = 16, 16 // top_k
    slow = np.zeros(experts, int)
    for token in range(tokens):
        for choice in range(top_k):
            start = token if tokens >= stride else token * stride / tokens
            slow[int((start + choice * stride) % experts)] += 1
    assert balanced_counts(tokens, experts, top_k).tolist() == slow.tolist()


def test_few_balanced_tokens_share_no_expert() -> None:
    assert draw_timed_rank("balanced", 16, 8) == (8.0, 8.0, 1.0)


def test_a_steeper_power_law_is_more_skewed_and_fills_the_timed_rank() -> None:
    flat, steep = (draw_timed_rank(f"power_law_{a}", 1024, 8, draws=50) for a in (1.01, 1.2))
    assert steep.load > flat.load > 1024 * 4 / 8
    assert steep.busiest > flat.busiest


def test_shipped_draws_are_those_of_the_rule() -> None:
    places = [(ep, t, r) for ep in (2, 64) for t in (4, 80, 512) for r in range(3)]
    for ep, tokens, routing in places:
        work = timed_work(ANY, np.ones(1), np.full(1, ep), 2.0)
        at = (0, TIMED_TOKENS.index(tokens), routing)
        drawn = draw_timed_rank(ROUTINGS[routing], tokens, ep)
        shipped = work.distinct[at], work.load[at], work.busiest[at]
        assert shipped == pytest.approx(drawn, rel=1e-6)


@pytest.mark.parametrize("name", ["uniform", "power_law_1.0", "power_law_x", "1.2"])
def test_other_routings_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"no timed routing '{name}'"):
        draw_timed_rank(name, 8, 1)
    with pytest.raises(InputError, match="ranks divide"):
        draw_timed_rank("balanced", 8, 3)
