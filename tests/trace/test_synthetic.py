"""The synthetic generator keeps the laws of routing and its seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import Phase, synthesize_rows


@given(tokens=st.integers(1, 200), requests=st.integers(1, 9), seed=st.integers(0, 9))
def test_ids_are_distinct_and_below_the_experts(
    model: MoEModel, tokens: int, requests: int, seed: int
) -> None:
    rows, described = synthesize_rows(model, tokens, requests=requests, seed=seed)
    assert (np.diff(np.sort(rows.experts, axis=2)) > 0).all()
    assert rows.experts.max() < model.experts
    assert rows.phase is not None
    prompts = np.array([request.prompt_tokens for request in described])
    np.testing.assert_array_equal(
        rows.phase == Phase.PREFILL, rows.position < prompts[rows.request]
    )


def test_same_seed_same_rows(model: MoEModel) -> None:
    first, second, other = (synthesize_rows(model, 100, seed=s)[0].experts for s in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_repeat_makes_tokens_follow_each_other(model: MoEModel) -> None:
    def repeats(repeat: float) -> float:
        ids = synthesize_rows(model, 500, repeat=repeat, requests=1)[0].experts
        return float((ids[1:] == ids[:-1]).all(axis=2).mean())

    assert repeats(0.8) > 0.7 > repeats(0.0)


def test_values_out_of_range_are_refused(model: MoEModel) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        synthesize_rows(model, 10, repeat=2.0)
