"""Quotas of a budget in bytes are the best, or within the stated bound; sizes may differ."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.cache import POLICIES, judge_cache, lru_curve, replay_cache
from moeprof.cache.quotas import _steepest_first, best_byte_quotas
from moeprof.errors import InputError
from moeprof.trace import open_trace
from tests.cache.test_replay import EXPERTS, made_up
from tests.recordings import SHIPPED

CURVES = st.lists(
    st.lists(st.integers(0, 9), min_size=4, max_size=4).map(sorted), min_size=1, max_size=3
)


def brute_force(hits: np.ndarray, sizes: np.ndarray, budget: int) -> int:
    """The most hits of all divisions that fit, one slot a layer at least."""
    layers, most = hits.shape
    return max(
        sum(row[n - 1] for row, n in zip(hits, way, strict=True))
        for way in product(range(1, most + 1), repeat=layers)
        if sum(n * size for n, size in zip(way, sizes, strict=True)) <= budget
    )


@given(
    curves=CURVES,
    sizes=st.lists(st.integers(1, 7), min_size=3, max_size=3),
    more=st.integers(0, 60),
)
def test_bytes_are_divided_best(curves: list[list[int]], sizes: list[int], more: int) -> None:
    hits, size = np.array(curves), np.array(sizes[: len(curves)])
    budget = int(size.sum()) + more
    quotas = best_byte_quotas(hits, size, budget)
    reached = sum(row[n - 1] for row, n in zip(hits, quotas.slots, strict=True))
    assert (np.array(quotas.slots) * size).sum() <= budget and quotas.short_by == 0
    assert reached == brute_force(hits, size, budget)
    rough = _steepest_first(hits, size, budget)
    reached = sum(row[n - 1] for row, n in zip(hits, rough.slots, strict=True))
    assert (np.array(rough.slots) * size).sum() <= budget
    assert reached <= brute_force(hits, size, budget) <= reached + rough.short_by


def test_a_budget_below_one_expert_a_layer_is_refused() -> None:
    with pytest.raises(InputError, match="one expert a layer takes 12"):
        best_byte_quotas(np.ones((2, 3), np.int64), np.array([5, 7]), 11)


@settings(max_examples=60)
@given(
    policy=st.sampled_from(sorted(POLICIES)),
    seed=st.integers(0, 50),
    budget=st.integers(8, 60),
    scope=st.sampled_from(["layer", "global", "quota"]),
    contract=st.sampled_from(["atomic", "sequential"]),
)
def test_every_policy_holds_experts_of_unequal_size(
    policy: str, seed: int, budget: int, scope: str, contract: str
) -> None:
    trace = made_up(seed, batch=2)
    first, last = trace.layers
    sizes = {first: 3, last: 4}
    replays = replay_cache(
        trace, policy=policy, budget_bytes=budget, scope=scope, contract=contract,
        expert_bytes=sizes, fit=0.5,
    )  # fmt: skip
    row = replays.rows[0]
    assert row.hits + row.misses == row.accesses and 0 <= row.loads <= row.accesses
    read = 3 * row.misses_by_layer[0] + 4 * row.misses_by_layer[1]
    assert row.bytes_per_token == pytest.approx(read / replays.tokens)
    if row.quotas:
        assert 3 * row.quotas[0] + 4 * row.quotas[1] <= budget
    full = replay_cache(
        trace, policy=policy, budget_bytes=2 * 4 * EXPERTS, scope=scope, expert_bytes=sizes, fit=0.5
    ).rows[0]
    assert full.misses <= lru_curve(trace).first_uses


def test_quotas_stand_beside_equal_slots() -> None:
    trace = open_trace(SHIPPED)
    row = replay_cache(trace, slots=16, scope="quota").rows[0]
    equal = replay_cache(trace, slots=16, scope="layer", fit=0.5).rows[0]
    assert row.equal_hit_ratio == equal.hit_ratio and row.quotas_short_by == 0
    assert equal.equal_hit_ratio is None


def test_a_gib_for_one_layer_is_worth_what_its_curve_says() -> None:
    trace = open_trace(SHIPPED)
    verdict = judge_cache(trace, slots=16)
    curve = lru_curve(trace)
    assert curve.hits_by_layer is not None and verdict.gib_misses_by_layer is not None
    gained = curve.hits_by_layer[:, -1] - curve.hits_by_layer[:, 15]  # a GiB holds all that is left
    assert list(verdict.gib_misses_by_layer) == list(trace.layers)
    assert list(verdict.gib_misses_by_layer.values()) == pytest.approx(gained / curve.tokens)
    assert sum(verdict.gib_misses_by_layer.values()) == pytest.approx(verdict.gib_misses_per_token)
