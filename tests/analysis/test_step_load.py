"""Steps drawn from a recording, beside a router that is even."""

from __future__ import annotations

import numpy as np
import pytest

from moeprof.analysis.step_load import even_step_imbalance, imbalance_of_steps, step_imbalance
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import Trace, synthesize_rows
from tests.analysis.test_locality import one_layer


def test_loads_of_a_step_by_hand() -> None:
    ids = np.array([[[0, 1], [0, 2], [0, 3]], [[0, 1], [2, 3], [1, 2]]])
    there = np.array([[True, True, True], [True, True, False]])
    assert imbalance_of_steps(ids, there, 4).tolist() == [3 / (6 / 4), 1.0]
    assert imbalance_of_steps(ids, there, 4, gpus=2).tolist() == [4 / 3, 1.0]


def test_one_token_loads_its_own_experts_alone(model: MoEModel) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 60, requests=4, prefill=0.0))
    (step,) = step_imbalance(trace, [1])
    for ratio in (step.imbalance, step.even, step.p95):
        assert ratio == pytest.approx(model.experts / model.top_k)
    assert even_step_imbalance(1, 8, 8) == 1.0


def test_a_step_takes_every_request_once_before_any_twice() -> None:
    """Two requests of experts of their own: steps of two or four tokens are always even."""
    trace = one_layer([[[0, 1, 2], [2, 1, 0]], [[3, 4, 5]]])
    two, four = step_imbalance(trace, [2, 4])
    assert (two.imbalance, two.resampled) == (1.0, False)
    assert (four.imbalance, four.resampled) == (1.0, True)
    assert two.even > 1.2


def test_even_routing_is_what_it_is_compared_with(model: MoEModel) -> None:
    made = synthesize_rows(model, 3000, requests=100, prefill=0.0, skew=0.0)
    for step in step_imbalance(Trace.in_memory(model, *made), [8, 64], seed=1):
        assert step.imbalance == pytest.approx(step.even, rel=0.06)
    assert even_step_imbalance(2, 2, 1) == pytest.approx(1.5, abs=0.1)  # both on one, or apart


def test_what_is_not_a_step_is_refused(model: MoEModel) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 30, prefill=0.0))
    with pytest.raises(InputError, match="batch 0"):
        step_imbalance(trace, [0])
    prompts = Trace.in_memory(model, *synthesize_rows(model, 30, prefill=1.0))
    assert step_imbalance(prompts, [1]) == []
