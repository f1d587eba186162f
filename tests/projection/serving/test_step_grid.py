from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.projection.serving import StepGrid
from moeprof.projection.step.batch import Batch

counts = st.integers(1, 3000)
lengths = st.floats(0, 1e6)
batches = st.builds(Batch, counts, lengths, st.integers(0, 20_000), lengths)


@settings(max_examples=50, deadline=None)
@given(batches)
def test_what_is_linear_in_each_argument_is_exact(batch: Batch) -> None:
    def law(b: Batch) -> float:
        return 1 + b.decode + 1e-3 * b.decode * b.context + b.prefill * (2 + b.prefill_context)

    assert StepGrid(law).seconds(batch) == pytest.approx(law(batch), rel=1e-9)


@given(batches, st.floats(0, 1))
def test_a_power_law_is_within_what_the_docstring_says(batch: Batch, power: float) -> None:
    def law(b: Batch) -> float:
        return float(b.tokens**power)

    error = StepGrid(law).seconds(batch) / law(batch) - 1
    assert abs(error) <= 2 * 0.0016  # two arguments


@given(st.integers(8, 3000), st.floats(8, 3000))
def test_the_corner_of_a_roofline_is_within_what_the_docstring_says(n: int, corner: float) -> None:
    def law(b: Batch) -> float:
        return max(1.0, b.decode / corner)

    assert 1 - 1e-9 <= StepGrid(law).seconds(Batch(n, 0, 0, 0)) / law(Batch(n, 0, 0, 0)) <= 1.056


@settings(max_examples=30)
@given(st.integers(1, 600), st.floats(0, 1e5), st.integers(1, 400))
def test_a_run_of_steps_is_the_steps_one_by_one(decode: int, context: float, steps: int) -> None:
    grid = StepGrid(lambda b: 1e-3 + b.decode**0.7 * b.context**0.3 * 1e-4)
    contexts = context + np.arange(steps, dtype=float)
    single = [grid.seconds(Batch(decode, each, 0, 0)) for each in contexts]
    assert grid.decode_seconds(decode, contexts) == pytest.approx(single, rel=1e-12)


def test_the_function_is_asked_once_a_knot_and_only_where_needed() -> None:
    asked: list[Batch] = []

    def law(b: Batch) -> float:
        asked.append(b)
        return 1.0

    grid = StepGrid(law, draft_tokens=2)
    for _ in range(2):
        grid.seconds(Batch(9, 8.0, 0, 0, 2))
    assert [(b.decode, b.context, b.draft_tokens) for b in asked] == [(8, 8, 2), (10, 8, 2)]
    assert grid.evaluations == 2


@pytest.mark.parametrize("answer", [-1.0, float("nan"), float("inf")])
def test_no_time_is_refused(answer: float) -> None:
    with pytest.raises(InputError, match="no time"):
        StepGrid(lambda b: answer).seconds(Batch(1, 1, 0, 0))


def test_beyond_the_last_knot_is_refused() -> None:
    with pytest.raises(InputError, match="beyond"):
        StepGrid(lambda b: 1.0).seconds(Batch(1, 1e11, 0, 0))
