"""A recording's routing against every step its tokens can make, and against its own analysis."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.analysis import analyze_locality
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.placement import Placement, Topology, solve_placement
from moeprof.placement.replay import Share
from moeprof.projection.routing import TraceRouting, UniformRouting
from moeprof.projection.routing.ranks import measure_ranks, neighbouring_experts
from moeprof.projection.routing.step_load import compared_fields
from moeprof.trace import Phase, TokenRows, Trace, open_trace
from tests.projection.routing.oracles import step_figures
from tests.recordings import SHIPPED, recording

RECORDINGS = ["gpt-oss-20b", "deepseek-v4-flash", "olmoe-1b-7b", "granite-3.0-1b"]


def small_trace(lengths: list[int], *, prompt: int = 0, experts: int = 6, seed: int = 1) -> Trace:
    """Skewed tokens of two layers, top-2; the first `prompt` of every request are prefill."""
    rng = np.random.default_rng(seed)
    request = np.repeat(np.arange(len(lengths)), lengths)
    position = np.concatenate([np.arange(n) for n in lengths])
    tokens = len(request)
    keys = rng.random((tokens, 2, experts)) / np.arange(1, experts + 1)
    rows = TokenRows(
        step=np.arange(tokens),
        request=request.astype(np.int32),
        position=position.astype(np.int32),
        phase=np.where(position < prompt, Phase.PREFILL, Phase.DECODE).astype(np.int8),
        experts=np.argsort(-keys, axis=2)[:, :, :2].astype(np.uint8),
    )
    return Trace.in_memory(MoEModel("small", "small", 1, 2, (0, 1), experts, 2), rows)


def exact(trace: Trace, steps: list[list[int]], placement: Placement) -> np.ndarray:
    """[6, layers] means over steps, each a list of rows."""
    layers = [
        np.mean(
            [step_figures(trace.experts(layer)[step].tolist(), placement, layer) for step in steps],
            axis=0,
        )
        for layer in trace.layers
    ]
    return np.stack(layers, axis=1)


def test_a_decode_step_is_a_token_each_of_different_requests() -> None:
    trace = small_trace([4, 2, 3])
    rows = [list(np.flatnonzero(trace.request == r)) for r in range(3)]
    for tokens in (1, 2, 3):
        # Every order of requests has the same chance, and in each every choice of their tokens.
        steps = [
            (list(choice), 1 / np.prod([len(rows[r]) for r in order]))
            for order in permutations(range(3), tokens)
            for choice in product(*(rows[r] for r in order))
        ]
        placement = neighbouring_experts(2, 6, 3)
        weights = np.array([weight for _, weight in steps]) / sum(w for _, w in steps)
        figures = [exact(trace, [step], placement) for step, _ in steps]
        truth = np.tensordot(weights, np.array(figures), axes=1)
        load = TraceRouting(trace).load(tokens, 3)
        assert compared_fields(load) == pytest.approx(truth, rel=0.08)
        assert load.provenance == "measured"


def test_a_prefill_step_is_a_stretch_of_prompts() -> None:
    trace = small_trace([6], prompt=6)
    placement = neighbouring_experts(2, 6, 2)
    steps = [list(range(begin, begin + 4)) for begin in range(3)]
    whole = exact(trace, [list(range(6))], placement)
    assert compared_fields(TraceRouting(trace).load(6, 2, phase=Phase.PREFILL)) == pytest.approx(
        whole
    )
    four = compared_fields(TraceRouting(trace).load(4, 2, phase=Phase.PREFILL))
    assert four == pytest.approx(exact(trace, steps, placement), rel=0.05)


def test_consecutive_tokens_share_experts() -> None:
    """Tokens of one request that never change its experts: a draft reads nothing more."""
    trace = small_trace([1] * 8)
    ids = np.repeat(np.stack([trace.experts(n) for n in trace.layers], axis=1), 5, axis=0)
    rows = TokenRows(
        step=np.arange(40),
        request=np.repeat(np.arange(8), 5).astype(np.int32),
        position=np.tile(np.arange(5), 8).astype(np.int32),
        phase=np.full(40, Phase.DECODE, np.int8),
        experts=ids,
    )
    routing = TraceRouting(Trace.in_memory(trace.model, rows))
    drafted = routing.load(32, 2, consecutive=4)
    assert drafted.distinct == pytest.approx(routing.load(8, 2).distinct)
    assert drafted.provenance == "measured"
    assert routing.load(32, 2).provenance == "fitted"


def test_it_agrees_with_the_analysis_of_the_shipped_recording() -> None:
    trace = open_trace(SHIPPED)
    routing, locality = TraceRouting(trace), analyze_locality(trace)
    for tokens in (1, 2, 8, 32, 128, 256):
        load = routing.load(tokens, 8)
        assert load.distinct.mean() == pytest.approx(locality.distinct_by_batch[tokens], rel=0.015)


def test_beyond_the_requests_tokens_are_independent() -> None:
    trace = small_trace([5, 5, 5, 5])
    share = np.stack([
        np.bincount(trace.experts(n).ravel(), minlength=6) / trace.tokens for n in trace.layers
    ])  # fmt: skip
    for tokens in (6, 12, 24):
        load = TraceRouting(trace).load(tokens, 2)
        null = (1 - (1 - share) ** tokens).sum(axis=1)
        assert load.distinct == pytest.approx(null, rel=0.02)
        assert load.provenance == "fitted"
        assert "independently" in load.source


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    tokens=st.floats(0.5, 60),
    ranks=st.sampled_from([1, 2, 4, 6]),
    phase=st.sampled_from([Phase.PREFILL, Phase.DECODE]),
    consecutive=st.sampled_from([1, 3]),
)
@settings(max_examples=25)
def test_laws(
    lengths: list[int], tokens: float, ranks: int, phase: Phase, consecutive: int
) -> None:
    trace = small_trace(lengths, prompt=3)
    load = TraceRouting(trace).load(tokens, ranks, phase=phase, consecutive=consecutive)
    assert (load.busiest_assignments >= load.mean_assignments * (1 - 1e-9)).all()
    assert (load.most_distinct >= load.mean_distinct - 1e-9).all()
    assert (load.distinct >= load.most_distinct - 1e-9).all()
    assert (load.distinct <= min(6, 2 * tokens) + 1e-9).all()
    assert load.hottest_tokens.max() <= tokens * (1 + 1e-9)
    if ranks == 1:
        assert load.most_distinct == pytest.approx(load.distinct)
        assert load.imbalance == pytest.approx(1)


@given(seed=st.integers(0, 200))
@settings(max_examples=15)
def test_independent_tokens_use_no_more_than_even_ones(seed: int) -> None:
    """Each request one token: sum of 1 - (1 - p)^T is concave, and even shares are its maximum."""
    trace = small_trace([1] * 4, seed=seed)
    even = UniformRouting(TraceRouting(trace).shape)
    for tokens in (8, 16, 32):
        load = TraceRouting(trace).load(tokens, 1)
        assert (load.distinct <= even.load(tokens, 1).distinct * 1.03).all()


def test_replicas_take_whole_tokens_in_turn() -> None:
    rng = np.random.default_rng(5)
    table = [[0, 1, 2, 3, 0, 1, 4, 5, 0], [5, 4, 3, 5, 2, 4, 1, 0, 3]]
    placement = Placement(np.array(table), 6, Topology.even(3, 9))
    for _ in range(20):
        step = [rng.choice(6, 2, replace=False).tolist() for _ in range(7)]
        counts = np.bincount(np.ravel(step), minlength=6)[None]
        for layer in (0, 1):
            found = measure_ranks(counts, placement, layer, Share.ROUND_ROBIN)
            assert found == pytest.approx(step_figures(step, placement, layer))


@given(seed=st.integers(0, 500))
def test_a_replica_more_never_adds_to_the_busiest_rank(seed: int) -> None:
    """Where replicas share as the best split has it: without the new one is one of its choices."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 20, (3, 6))
    fewer = neighbouring_experts(1, 6, 3)
    extra = [rng.choice([e for e in range(6) if e // 2 != rank]) for rank in range(3)]
    table = np.array([[0, 1, extra[0], 2, 3, extra[1], 4, 5, extra[2]]])
    more = Placement(table, 6, Topology.even(3, 9))
    before, after = (measure_ranks(counts, p, 0, Share.LP)[4] for p in (fewer, more))
    assert after <= before + 1e-4


def test_a_placement_lowers_what_steps_wait_for() -> None:
    trace = open_trace(SHIPPED)
    load = np.stack([np.bincount(trace.experts(n).ravel(), minlength=64) for n in trace.layers])
    placement = solve_placement(load, Topology.even(8, 64))
    before = TraceRouting(trace).load(4096, 8, phase=Phase.PREFILL)
    after = TraceRouting(trace, placement).load(4096, 8, phase=Phase.PREFILL)
    assert after.imbalance < before.imbalance
    assert after.distinct == pytest.approx(before.distinct)
    with pytest.raises(InputError, match="8 GPUs"):
        TraceRouting(trace, placement).load(64, 4)


def test_a_phase_that_was_not_recorded_is_stood_in_for() -> None:
    trace = small_trace([4, 4])
    load = TraceRouting(trace).load(4, 2, phase=Phase.PREFILL)
    assert load.provenance == "assumed"
    assert "standing in" in load.source


def test_same_seed_same_numbers() -> None:
    trace = small_trace([4, 5, 6])
    first, again = (compared_fields(TraceRouting(trace, seed=3).load(2.5, 2)) for _ in range(2))
    assert (first == again).all()
    assert (compared_fields(TraceRouting(trace, seed=4).load(2.5, 2)) != first).any()


@pytest.mark.parametrize("name", RECORDINGS)
def test_real_recordings_read_fewer_experts_than_even_routing(name: str) -> None:
    trace = recording(name)
    routing = TraceRouting(trace)
    for tokens in (4, 32):
        load, even = routing.load(tokens, 8), UniformRouting(routing.shape).load(tokens, 8)
        assert load.distinct.mean() < even.distinct.mean()
        assert load.provenance == ("measured" if tokens <= routing.most_measured() else "fitted")
