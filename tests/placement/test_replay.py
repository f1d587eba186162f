"""The load of every rank in every step is what plain loops and a linear program say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from moeprof.errors import InputError, TraceError
from moeprof.model import MoEModel
from moeprof.placement import Placement, Topology
from moeprof.placement.replay import (
    Interval,
    RoutedIds,
    Share,
    batched_steps,
    judge_placements,
    judged_requests,
    recorded_steps,
    replay_ranks,
)
from moeprof.placement.replay.kernels import LEVEL, share_tokens
from moeprof.placement.replay.load import replica_ranks
from moeprof.trace import Batching, Phase, TokenRows, Trace, open_trace, synthesize_rows
from tests.conftest import small_config
from tests.placement.maps import placements
from tests.recordings import SHIPPED


def made_up(placement: Placement, seed: int, holes: bool = False) -> Trace:
    """A trace of the placement's shape; with `holes`, some layers of some tokens are missing."""
    config = small_config(placement.layers + 1, placement.experts, min(2, placement.experts))
    model = MoEModel.from_config(config)
    rows, requests = synthesize_rows(model, 40, seed=seed, requests=5)
    if holes:
        recorded = np.random.default_rng(seed).random((40, placement.layers)) < 0.7
        rows = TokenRows(**{**vars(rows), "recorded": recorded})
    return Trace.in_memory(model, rows, requests)


def routed(trace: Trace, row: int) -> dict[int, list[int]]:
    """The experts of every token that has the layer."""
    layer = trace.layers[row]
    tokens = np.flatnonzero(trace.recorded(layer)).tolist()
    return dict(zip(tokens, trace.experts(layer).tolist(), strict=True))


def slow_loads(trace: Trace, steps: Batching, placement: Placement, share: Share) -> np.ndarray:
    """[layers, steps, gpus] token by token."""
    rank = placement.topology.rank_of_slot().tolist()
    loads = np.zeros((placement.layers, len(steps.starts) - 1, placement.topology.gpus))
    for row, table in enumerate(placement.physical_to_logical_map.tolist()):
        experts = routed(trace, row)
        homes = {e: [s for s, held in enumerate(table) if held == e] for e in set(table)}
        for step, tokens in enumerate(np.split(steps.order, steps.starts[1:-1])):
            turn = dict.fromkeys(homes, 0)
            for expert in (e for token in tokens.tolist() for e in experts.get(token, [])):
                slots = homes[expert]
                if share is Share.EQUAL:
                    for slot in slots:
                        loads[row, step, rank[slot]] += 1 / len(slots)
                else:
                    loads[row, step, rank[slots[turn[expert] % len(slots)]]] += 1
                    turn[expert] += 1
    return loads


@settings(max_examples=60)
@given(
    placement=placements(),
    seed=st.integers(0, 99),
    share=st.sampled_from([Share.EQUAL, Share.ROUND_ROBIN]),
    holes=st.booleans(),
    batch=st.integers(0, 4),
)
def test_every_step_is_the_slow_loops(
    placement: Placement, seed: int, share: Share, holes: bool, batch: int
) -> None:
    trace = made_up(placement, seed, holes)
    steps = recorded_steps(trace)
    if batch:
        steps = batched_steps(trace, judged_requests(trace), batch)
    loads = replay_ranks(RoutedIds.of(trace), steps, placement, share)
    slow = slow_loads(trace, steps, placement, share)
    np.testing.assert_allclose(loads.total, slow.sum(axis=1))
    np.testing.assert_allclose(loads.busiest, slow.max(axis=2))
    np.testing.assert_array_equal(loads.assigned, np.rint(slow.sum(axis=2)))


def least_busiest(count: np.ndarray, first: np.ndarray, ranks: np.ndarray, gpus: int) -> float:
    """The linear program, by HiGHS: a share a slot, the busiest rank as low as can be."""
    slots = len(ranks)
    over = np.zeros((gpus, slots + 1))
    over[ranks, np.arange(slots)] = 1
    over[:, -1] = -1
    owner = np.repeat(np.arange(len(count)), np.diff(first))
    whole = np.zeros((len(count), slots + 1))
    whole[owner, np.arange(slots)] = 1
    objective = np.append(np.zeros(slots), 1)
    solved = linprog(objective, over, np.zeros(gpus), whole, count)
    return float(solved.fun)


@settings(max_examples=150)
@given(placement=placements(), data=st.data())
def test_levelled_shares_are_the_linear_programs(placement: Placement, data: st.DataObject) -> None:
    counts = st.lists(st.integers(0, 400), min_size=placement.experts, max_size=placement.experts)
    count = np.array(data.draw(counts))
    first, ranks = replica_ranks(placement, 0)
    gpus = placement.topology.gpus
    load, share = np.zeros(gpus), np.zeros(len(ranks))
    share_tokens(count, first, ranks, LEVEL, load, share)
    np.testing.assert_allclose(np.add.reduceat(share, first[:-1]), count, atol=1e-6)
    assert (share >= 0).all()
    np.testing.assert_allclose(load, np.bincount(ranks, share, gpus), atol=1e-6)
    assert load.max() == pytest.approx(least_busiest(count, first, ranks, gpus), abs=1e-3)


@pytest.mark.parametrize("replicas", [64, 128])
def test_levelled_shares_of_64_gpus_are_the_linear_programs(replicas: int) -> None:
    rng = np.random.default_rng(replicas)
    table = np.concatenate([rng.permutation(128), rng.integers(0, 128, replicas)])[None]
    topology = Topology.even(64, 128 + replicas)
    placement = Placement(table, 128, topology, allow_duplicates=True)
    first, ranks = replica_ranks(placement, 0)
    for _ in range(5):
        count = rng.multinomial(1024, rng.dirichlet(np.full(128, 0.7)))
        load, share = np.zeros(64), np.zeros(len(ranks))
        share_tokens(count, first, ranks, LEVEL, load, share)
        assert load.max() == pytest.approx(least_busiest(count, first, ranks, 64), rel=1e-4)


@given(placement=placements(), seed=st.integers(0, 99))
def test_no_share_beats_the_linear_programs(placement: Placement, seed: int) -> None:
    trace = made_up(placement, seed)
    ids, steps = RoutedIds.of(trace), recorded_steps(trace)
    best = replay_ranks(ids, steps, placement, Share.LP)
    for share in (Share.EQUAL, Share.ROUND_ROBIN):
        other = replay_ranks(ids, steps, placement, share)
        assert (best.busiest <= other.busiest + 1e-5).all()
        np.testing.assert_array_equal(best.assigned, other.assigned)


@given(placement=placements(), seed=st.integers(0, 99))
def test_equal_shares_sum_to_the_maps_own_loads(placement: Placement, seed: int) -> None:
    trace = made_up(placement, seed)
    loads = replay_ranks(RoutedIds.of(trace), recorded_steps(trace), placement)
    counted = np.stack(
        [np.bincount(trace.experts(n).ravel(), minlength=placement.experts) for n in trace.layers]
    )
    np.testing.assert_allclose(loads.total, placement.rank_load(counted))
    np.testing.assert_allclose(loads.imbalance_by_layer(), placement.imbalance_by_layer(counted))


def linear(trace: Trace, gpus: int) -> Placement:
    experts = trace.experts_per_layer
    table = np.tile(np.arange(experts), (len(trace.layers), 1))
    return Placement(table, experts, Topology.even(gpus, experts))


def test_a_judgement_is_of_the_window_and_its_figures_follow_their_formulas() -> None:
    trace = open_trace(SHIPPED)
    placement = linear(trace, 4)
    window = trace.request % 2 == 0
    verdict = judge_placements(trace, {"linear": placement}, window=window, batch=3, resamples=0)
    steps = batched_steps(trace, judged_requests(trace, window), 3)
    slow = slow_loads(trace, steps, placement, Share.EQUAL)
    waited = slow.max(axis=2).sum(axis=0)
    (one,) = verdict.judgements
    assert verdict.tokens == window.sum()
    assert verdict.steps == len(waited)
    assert one.busiest_mean.value == pytest.approx(waited.mean())
    assert one.busiest_p99.value == pytest.approx(np.percentile(waited, 99))
    assert one.step_imbalance.value == pytest.approx(waited.sum() / slow.mean(axis=2).sum())
    summed = slow.sum(axis=1)
    assert one.imbalance.value == pytest.approx((summed.max(axis=1) / summed.mean(axis=1)).mean())
    assert one.imbalance.low is None
    assert verdict.even_mean == pytest.approx(slow.mean(axis=2).sum(axis=0).mean())


def test_intervals_are_of_requests_drawn_anew() -> None:
    trace = open_trace(SHIPPED)
    placement = linear(trace, 4)
    verdict = judge_placements(trace, {"linear": placement}, batch=4, resamples=25, seed=7)
    by_request = np.stack(
        [
            [
                np.bincount(
                    trace.experts(n)[trace.request == r].ravel(), minlength=placement.experts
                )
                for n in trace.layers
            ]
            for r in dict.fromkeys(trace.request.tolist())
        ]
    )
    rng = np.random.default_rng(7)
    number = len(by_request)
    drawn = [
        placement.imbalance(by_request[rng.integers(number, size=number)].sum(axis=0))
        for _ in range(25)
    ]
    interval = verdict.judgements[0].imbalance
    assert verdict.resamples == 25
    assert interval.high == pytest.approx(interval.value + 1.959964 * np.std(drawn, ddof=1))
    assert interval.low is not None and interval.low >= 1


def test_the_same_seed_gives_the_same_intervals_and_another_does_not() -> None:
    trace = open_trace(SHIPPED)
    maps = {"linear": linear(trace, 2), "same": linear(trace, 2)}
    once, again = (judge_placements(trace, maps, batch=4, resamples=5, seed=s) for s in (1, 1))
    assert once.to_dict() == again.to_dict()
    other = judge_placements(trace, maps, batch=4, resamples=5, seed=2)
    assert other.judgements[0].imbalance != once.judgements[0].imbalance
    assert once.judgements[1].imbalance_less_first == Interval(0.0, 0.0, 0.0)


def test_decode_alone_is_judged_where_asked() -> None:
    trace = open_trace(SHIPPED)
    verdict = judge_placements(trace, {"linear": linear(trace, 4)}, batch=4, phase=Phase.DECODE)
    assert verdict.tokens == (trace.phase == Phase.DECODE).sum()
    recorded = judge_placements(trace, {"linear": linear(trace, 4)}, phase=Phase.DECODE)
    assert recorded.tokens == verdict.tokens
    assert recorded.requests is None


def test_what_cannot_be_judged_says_so() -> None:
    trace = open_trace(SHIPPED)
    with pytest.raises(InputError, match="no placement to judge"):
        judge_placements(trace, {})
    with pytest.raises(InputError, match="share 'fair' is not one of equal, round-robin, lp"):
        judge_placements(trace, {"linear": linear(trace, 4)}, share="fair")
    small = Placement(np.array([[0, 1]]), 2, Topology.even(2, 2))
    with pytest.raises(InputError, match="the placement is of 1 layers of 2"):
        judge_placements(trace, {"small": small})
    nothing = np.zeros(trace.tokens, bool)
    with pytest.raises(InputError, match="holds no tokens in the window"):
        judge_placements(trace, {"linear": linear(trace, 4)}, window=nothing)
    with pytest.raises(TraceError, match="must say its request"):
        judge_placements(trace, {"linear": linear(trace, 4)}, window=nothing, batch=2)
