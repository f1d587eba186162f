"""Chance keeps degrees: by enumeration, by laws, and against graphs drawn by curveball swaps."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moeprof.analysis.affinity.counting import count_together
from moeprof.analysis.affinity.null import choice_odds, dealt_anew, pair_chances, variance_share
from tests.analysis.affinity.traces import independent

Numbers = NDArray[np.float64]


def enumerated(odds: Numbers, k: int) -> tuple[Numbers, Numbers]:
    """Chance of each expert and of each pair, over all sets of k."""
    one, two = np.zeros(len(odds)), np.zeros((len(odds), len(odds)))
    total = 0.0
    for chosen in itertools.combinations(range(len(odds)), k):
        weight = odds[list(chosen)].prod()
        total += weight
        one[list(chosen)] += weight
        for a, b in itertools.permutations(chosen, 2):
            two[a, b] += weight
    return one / total, two / total


def test_chances_are_those_of_all_sets() -> None:
    odds = np.random.default_rng(0).lognormal(0, 1.5, 9)
    for k in (2, 3, 5):
        one, two = enumerated(odds, k)
        np.testing.assert_allclose(pair_chances(odds, k), two, rtol=1e-12)
        fitted = choice_odds(np.rint(one * 10**9).astype(np.int64)[None], k)[0]
        np.testing.assert_allclose(pair_chances(fitted, k), two, rtol=1e-4)


@settings(max_examples=10)
@given(st.lists(st.integers(0, 300), min_size=8, max_size=20), st.integers(2, 5))
def test_chance_keeps_every_load_and_every_token(load: list[int], k: int) -> None:
    drawn = independent(np.random.default_rng(0), 300, np.array(load) + 0.01, k)
    counts = np.bincount(drawn.ravel(), minlength=len(load))
    expected = 300 * pair_chances(choice_odds(counts[None], k)[0], k)
    np.testing.assert_allclose(expected.sum(), 300 * k * (k - 1))
    np.testing.assert_allclose(expected.sum(axis=1), (k - 1) * counts, atol=0.02 * 300)
    assert (expected >= 0).all() and (expected == expected.T).all()


def curveball(ids: NDArray[np.intp], rng: np.random.Generator, trades: int) -> NDArray[np.intp]:
    """Trades of what only one of two tokens has: keeps both degrees (Strona et al. 2014)."""
    rows = [set(row) for row in ids.tolist()]
    for one, other in rng.integers(0, len(rows), (trades, 2)).tolist():
        shared = rows[one] & rows[other]
        apart = rng.permutation(list(rows[one] ^ rows[other])).tolist()
        if one != other:
            rows[one] = shared | set(apart[: len(apart) // 2])
            rows[other] = shared | set(apart[len(apart) // 2 :])
    return np.array([sorted(row) for row in rows])


def test_mean_and_variance_are_those_of_swapped_graphs() -> None:
    rng = np.random.default_rng(1)
    tokens, size, k, draws = 80, 10, 3, 250
    ids = independent(rng, tokens, rng.lognormal(0, 0.7, size), k)
    load = np.bincount(ids.ravel(), minlength=size)
    upper = np.triu_indices(size, 1)
    expected = tokens * pair_chances(choice_odds(load[None], k)[0], k)[upper]
    variance = expected * variance_share(load / tokens, k)[upper]
    seen = []
    for _ in range(draws):
        ids = curveball(ids, rng, 2 * tokens)
        assert (np.bincount(ids.ravel(), minlength=size) == load).all()
        seen.append(count_together(ids.astype(np.uint8), size)[upper])
    error = (np.mean(seen, axis=0) - expected) / np.sqrt(variance / draws)
    assert np.sqrt((error**2).mean()) < 1.4  # 1, and what a draw shares with the one before
    assert abs(np.var(seen, axis=0).sum() / variance.sum() - 1) < 0.1


def test_dealt_anew_loads_stay_and_pairs_are_by_chance() -> None:
    rng = np.random.default_rng(2)
    tokens, size, k = 3000, 40, 6
    ids = independent(rng, tokens, rng.lognormal(0, 1.2, size), k).astype(np.uint8)
    load = np.bincount(ids.ravel(), minlength=size)
    assert load.max() > tokens / 3  # hot enough that shuffling repeats it in many tokens
    upper = np.triu_indices(size, 1)
    expected = tokens * pair_chances(choice_odds(load[None], k)[0], k)[upper]
    spread = np.sqrt(expected * variance_share(load / tokens, k)[upper])
    off = []
    for _ in range(8):
        dealt = dealt_anew(ids, rng)
        np.testing.assert_array_equal(np.bincount(dealt.ravel(), minlength=size), load)
        assert (np.diff(np.sort(dealt, axis=1).astype(int), axis=1) > 0).all()
        off.append((count_together(dealt, size)[upper] - expected) / spread)
    assert abs(np.mean(off)) < 0.05
    assert abs(np.var(off) - 1) < 0.08
