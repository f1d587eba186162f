"""Affinity is seen where it was planted, with its size, and not where there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from moeprof.analysis import analyze_affinity
from moeprof.analysis.affinity.communities import adjusted_rand
from moeprof.errors import InputError, TraceError
from moeprof.report.text.affinity import affinity_text
from moeprof.trace import Phase, Trace
from tests.analysis.affinity.traces import independent, requests_of, trace_of
from tests.analysis.damage import with_foreign_id
from tests.recordings import recording


def test_independent_routing_shows_nothing() -> None:
    rng = np.random.default_rng(0)
    load = rng.lognormal(0, 0.8, 24)
    layers = [independent(rng, 6000, load, 4) for _ in range(3)]
    result = analyze_affinity(trace_of(layers, 24, requests_of(6000, 100)))
    found = sum(layer.more_often + layer.less_often for layer in result.per_layer)
    assert found <= 1  # of 828 pairs
    assert all(layer.dispersion < 1.1 for layer in result.per_layer)
    assert abs(result.split_half_correlation or 1) < 0.1
    assert (result.modularity or 1) < (result.modularity_null or 0) + 0.05
    assert abs(result.information_excess_bits or 1) < 2e-4
    assert result.next_layer_recall_k == pytest.approx(
        result.next_layer_recall_k_popularity, abs=0.02
    )


def test_rare_experts_make_cliques_and_the_null_has_them_too() -> None:
    """Many experts a token, some rare: chance alone has groups, as many as the null says."""
    rng = np.random.default_rng(9)
    ids = independent(rng, 1500, rng.lognormal(0, 1.5, 96), 10)
    result = analyze_affinity(trace_of([ids], 96, requests_of(1500, 30)))
    assert result.modularity == pytest.approx(result.modularity_null, abs=0.06)
    assert result.significant_pairs == 0


def test_tokens_said_ten_times_are_no_evidence() -> None:
    """The dispersion of requests takes back what repetition adds."""
    rng = np.random.default_rng(1)
    ids = np.repeat(independent(rng, 1280, np.ones(20), 4), 10, axis=0)
    result = analyze_affinity(trace_of([ids], 20, requests_of(12_800, 100)))
    (layer,) = result.per_layer
    assert layer.dispersion == pytest.approx(10, rel=0.15)
    assert layer.more_often + layer.less_often <= 2


def planted_pairs(tokens: int) -> np.ndarray:
    """Experts 3 and 17 together in a tenth of the tokens that would not be of themselves."""
    rng = np.random.default_rng(2)
    ids = independent(rng, tokens, np.ones(32), 4)
    ids[rng.random(tokens) < 0.1] = 0
    for token in np.flatnonzero((ids == 0).all(axis=1)):
        others = rng.choice(np.setdiff1d(np.arange(32), [3, 17]), 2, replace=False)
        ids[token] = [3, 17, *others]
    return ids


def test_a_planted_pair_is_the_strongest_with_its_lift() -> None:
    trace = trace_of([planted_pairs(5000)], 32, requests_of(5000, 50))
    result = analyze_affinity(trace)
    pair = result.strongest[0]
    ids = trace.experts(0)
    both = int(((ids == 3).any(axis=1) & (ids == 17).any(axis=1)).sum())
    assert (pair.experts, pair.together) == ((3, 17), both)
    assert pair.lift_low < pair.lift < pair.lift_high
    one, other = ((ids == e).any(axis=1).mean() for e in (3, 17))
    assert pair.expected == pytest.approx(5000 * one * other * 0.8, rel=0.1)  # (k-1)/k E/(E-1)
    assert result.per_layer[0].more_often < 4 and pair.q < 1e-20


def test_planted_groups_are_the_communities() -> None:
    """Each token of one of four groups of 8, and once in a while of all."""
    rng = np.random.default_rng(3)
    group = rng.integers(0, 4, 4000)
    load = np.where(np.arange(32) // 8 == group[:, None], 1.0, 0.05)
    layers = [np.argsort(-np.log(load) - rng.gumbel(size=load.shape), axis=1)[:, :4]] * 2
    result = analyze_affinity(trace_of(layers, 32, requests_of(4000, 40)))
    assert result.per_layer[0].community == (np.arange(32) // 8).tolist()
    assert result.community_stability == 1.0
    assert (result.modularity or 0) > 0.7 > 0.4 > (result.modularity_null or 1)
    assert (result.split_half_correlation or 0) > 0.95


def test_planted_transitions_are_predicted() -> None:
    """Every expert sends its tokens to one of the next layer."""
    rng = np.random.default_rng(4)
    first = independent(rng, 3000, rng.lognormal(0, 0.5, 16), 3)
    to = rng.permutation(16)
    result = analyze_affinity(trace_of([first, to[first]], 16, requests_of(3000, 30)))
    (move,) = result.transitions
    assert move.top1 == result.next_layer_top1 == move.recall_2k == 1.0
    assert (move.recall_k or 0) > 0.99  # two of a token's experts may outvote the third
    assert (move.top1_popularity or 1) < 0.6
    assert move.information_excess_bits > 0.4
    interval = result.next_layer_top1_interval
    assert interval and interval.low == interval.high == 1.0


def test_what_requests_favour_is_told_from_what_tokens_do() -> None:
    """Requests of two topics, tokens that choose by the topic alone: all excess is of requests."""
    rng = np.random.default_rng(5)
    topic = np.arange(60).repeat(100) % 2
    load = np.where(np.arange(32) // 16 == topic[:, None], 1.0, 0.2)
    ids = np.argsort(-np.log(load) - rng.gumbel(size=load.shape), axis=1)[:, :4]
    result = analyze_affinity(trace_of([ids], 32, requests_of(6000, 100)))
    assert result.per_layer[0].more_often > 100
    assert result.from_requests == pytest.approx(1, abs=0.15)


def test_shuffled_within_requests_a_layer_tells_nothing_but_the_topic() -> None:
    rng = np.random.default_rng(5)
    load = np.where(np.arange(16) // 8 == np.arange(60).repeat(100)[:, None] % 2, 1.0, 0.2)
    layers = [
        np.argsort(-np.log(load) - rng.gumbel(size=load.shape), axis=1)[:, :3] for _ in range(2)
    ]
    (move,) = analyze_affinity(trace_of(layers, 16, requests_of(6000, 100))).transitions
    assert move.information_bits > 20 * move.information_bias_bits
    assert abs(move.information_excess_bits) < 0.05 * move.information_bits


def test_renaming_experts_renames_the_answer() -> None:
    ids, name = planted_pairs(2000), np.random.default_rng(6).permutation(32)
    one, other = (
        analyze_affinity(trace_of([part], 32, requests_of(2000, 20))) for part in (ids, name[ids])
    )
    assert sorted(name[list(one.strongest[0].experts)]) == list(other.strongest[0].experts)
    assert one.strongest[0].lift == pytest.approx(other.strongest[0].lift)
    assert one.per_layer[0].dispersion == pytest.approx(other.per_layer[0].dispersion)


def test_same_seed_same_answer_and_plain_json() -> None:
    trace = trace_of([planted_pairs(1000)] * 3, 32, requests_of(1000, 20))
    one, other = (json.dumps(analyze_affinity(trace).to_dict(), allow_nan=False) for _ in "ab")
    assert one == other


def test_one_expert_a_token_has_transitions_alone() -> None:
    ids = independent(np.random.default_rng(7), 400, np.ones(8), 1)
    result = analyze_affinity(trace_of([ids, ids], 8, requests_of(400, 20)))
    assert result.modularity is None and result.per_layer == []
    assert result.next_layer_top1 == 1.0
    assert affinity_text(result).startswith("Tokens choose 1 of 8 experts")
    with pytest.raises(InputError, match="nothing goes together"):
        analyze_affinity(trace_of([ids], 8, requests_of(400, 20)))


def test_damage_and_missing_phases_are_refused() -> None:
    with pytest.raises(TraceError, match="in layer 2 an expert id is not below 16"):
        analyze_affinity(with_foreign_id())
    with pytest.raises(InputError, match="holds 0 decode tokens"):
        analyze_affinity(trace_of([planted_pairs(50)], 32, np.zeros(50, int)), phase=Phase.DECODE)


def test_layers_that_few_tokens_have_are_left_out() -> None:
    """As the last layer of llama.cpp's prompts, which holds one token of each."""
    trace = trace_of([planted_pairs(200)] * 3, 32, requests_of(200, 20))
    (rows,) = trace.rows()
    there = np.ones((200, 3), bool)
    there[1:, 2] = False
    some = Trace.in_memory(trace.model, replace(rows, recorded=there))
    result = analyze_affinity(some)
    assert [layer.layer for layer in result.per_layer] == [0, 1]
    assert [move.next_layer for move in result.transitions] == [1]
    whole = analyze_affinity(trace)
    assert result.per_layer == whole.per_layer[:2]


def test_adjusted_rand_by_pairs() -> None:
    rng = np.random.default_rng(8)
    one, other = rng.integers(0, 3, 30), rng.integers(0, 4, 30)
    same = [[part[a] == part[b] for a, b in combinations(range(30), 2)] for part in (one, other)]
    both, first, second = np.logical_and(*same).sum(), *map(sum, same)
    chance = first * second / len(same[0])
    expected = (both - chance) / ((first + second) / 2 - chance)
    assert adjusted_rand(one, other) == pytest.approx(expected)
    assert adjusted_rand(one, (one + 1) % 3) == 1.0


def test_gpt_oss_tells_its_next_layer() -> None:
    """Half of the requests tell the other half's: what ExFlow and prefetchers live on."""
    result = analyze_affinity(recording("gpt-oss-20b"))
    assert result.next_layer_top1 == pytest.approx(0.60, abs=0.02)
    assert result.next_layer_top1_popularity == pytest.approx(0.33, abs=0.02)
    assert (result.split_half_correlation or 0) > 0.8
    pair = result.strongest[0]
    assert (pair.layer, pair.experts) == (23, (5, 15)) and pair.lift_low > 20
    text = affinity_text(result, "run.moetrace")
    assert text.startswith("Experts 5 and 15 of layer 23 are chosen together 53 times as often")
    assert "moeprof cache prefetch run.moetrace --predictor markov" in text
    assert max(map(len, text.splitlines())) <= 80
