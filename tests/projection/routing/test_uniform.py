"""Even routing against every step that can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.projection.routing import PowerLawRouting, Shape, UniformRouting, mixed_load
from moeprof.projection.routing.ranks import neighbouring_experts
from moeprof.projection.routing.step_load import COMPARED, compared_fields
from moeprof.projection.routing.uniform import even_counts
from tests.projection.routing.oracles import all_even_steps, step_figures

M3 = Shape(57, 128, 4)


@pytest.mark.parametrize(
    ("experts", "top_k", "ranks", "tokens"),
    [(4, 2, 2, 3), (6, 2, 3, 2), (5, 3, 2, 2), (4, 1, 4, 4)],
)
def test_it_is_the_mean_over_every_step(experts: int, top_k: int, ranks: int, tokens: int) -> None:
    placement = neighbouring_experts(1, experts, ranks)
    steps = all_even_steps(experts, top_k, tokens)
    exact = np.mean([step_figures(step, placement) for step in steps], axis=0)
    load = UniformRouting(Shape(2, experts, top_k)).load(tokens, ranks)
    found = compared_fields(load)
    assert found[:2, 1] == pytest.approx(exact[:2], rel=1e-12)
    assert found[:, 1] == pytest.approx(exact, rel=0.03)
    assert (found[:, 0] == found[:, 1]).all()


def test_large_steps_are_drawn_like_small_ones() -> None:
    """Counts drawn expert by expert have the spread of those drawn token by token."""
    rng = np.random.default_rng(0)
    shape, tokens, steps = Shape(1, 16, 4), 256, 800
    by_token = even_counts(shape, tokens, steps, rng)
    by_expert = rng.binomial(tokens, 4 / 16, (steps, 16))
    busiest = [c.reshape(steps, 4, 4).sum(axis=2).max(axis=1).mean() for c in (by_token, by_expert)]
    assert busiest[0] - tokens == pytest.approx(busiest[1] - tokens, rel=0.1)
    assert (by_token.sum(axis=1) == tokens * 4).all()


def test_m3_at_a_batch_of_32_reads_the_published_number() -> None:
    load = UniformRouting(M3).load(32, 8)
    assert load.distinct == pytest.approx(np.full(57, 81.66), abs=0.01)
    assert load.provenance == "assumed"


@given(
    tokens=st.floats(0.5, 5000),
    ranks=st.sampled_from([1, 3, 4, 8]),
    alpha=st.sampled_from([None, 0.0, 1.01, 1.2]),
)
def test_laws(tokens: float, ranks: int, alpha: float | None) -> None:
    shape = Shape(3, 32, 4)
    routing = UniformRouting(shape) if alpha is None else PowerLawRouting(shape, alpha)
    load = routing.load(tokens, ranks)
    assert (load.busiest_assignments >= load.mean_assignments * (1 - 1e-9)).all()
    assert (load.busiest_assignments <= tokens * 4 * (1 + 1e-9)).all()
    assert (load.most_distinct >= load.mean_distinct - 1e-9).all()
    assert (load.most_distinct >= load.busiest_distinct - 1e-9).all()
    assert (load.distinct <= min(32, tokens * 4) + 1e-9).all()
    assert (load.hottest_tokens <= tokens * (1 + 1e-9)).all()
    if ranks == 1:
        assert load.most_distinct == pytest.approx(load.distinct)
        assert load.imbalance == pytest.approx(1)


def test_more_tokens_read_more_and_wait_less_for_chance() -> None:
    routing = UniformRouting(M3)
    loads = [routing.load(tokens, 8) for tokens in np.geomspace(1, 20_000, 40)]
    assert (np.diff([load.most_distinct[0] for load in loads]) >= -0.01).all()
    assert (np.diff([load.busiest_assignments[0] for load in loads]) > 0).all()
    assert loads[0].imbalance > loads[20].imbalance > loads[-1].imbalance > 1


def test_no_tokens_and_no_layers_ask_for_nothing() -> None:
    assert not compared_fields(UniformRouting(M3).load(0, 8)).any()
    assert compared_fields(UniformRouting(Shape(0, 0, 0)).load(32, 8)).shape == (6, 0)


@pytest.mark.parametrize(
    ("tokens", "ranks", "consecutive"), [(-1, 8, 1), (float("nan"), 8, 1), (1, 0, 1), (1, 129, 1),
                                         (1, 8, 0)]
)  # fmt: skip
def test_numbers_without_sense_are_refused(tokens: float, ranks: int, consecutive: int) -> None:
    with pytest.raises(InputError):
        UniformRouting(M3).load(tokens, ranks, consecutive=consecutive)


def test_seconds_are_summed_over_layers() -> None:
    load = UniformRouting(M3).load(64, 8)
    layer = load.seconds(lambda tokens, distinct, assignments: 1e-6 * distinct + 1e-9 * assignments)
    each = 1e-6 * load.most_distinct[0] + 1e-9 * load.busiest_assignments[0]
    assert layer == pytest.approx(57 * each)
    assert load.mean_seconds(lambda t, d, a: t + d) == pytest.approx(64 + load.most_distinct[0])


def test_mixed_steps_lie_between_a_part_and_the_sum_of_both() -> None:
    routing = UniformRouting(M3)
    a, b = routing.load(16, 8), routing.load(48, 8)
    mixed, whole = mixed_load(a, b), routing.load(64, 8)
    assert mixed.tokens == 64
    assert mixed.distinct == pytest.approx(whole.distinct, rel=1e-9)  # independent indeed
    assert mixed.most_distinct == pytest.approx(whole.most_distinct, rel=0.03)
    assert (mixed.busiest_assignments >= whole.busiest_assignments).all()
    assert mixed_load(a, routing.load(0, 8)) is a
    with pytest.raises(InputError):
        mixed_load(a, routing.load(1, 4))


def test_compared_fields_are_fields() -> None:
    assert set(COMPARED) <= set(vars(UniformRouting(M3).load(1, 1)))
