"""What ids tell of experts: known answers, brute force, and nothing where ids tell nothing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import entropy

from moeprof.analysis.specialization import analyze_vocabulary
from moeprof.errors import InputError, TraceError
from moeprof.model import MoEModel
from moeprof.trace import TokenRows, Trace

REQUESTS, TOKENS, EXPERTS = 20, 50, 8


def trace_of(ids: NDArray[np.int64], experts: NDArray[np.int64]) -> Trace:
    """Requests of 50 tokens; `ids` [tokens], `experts` [tokens, layers, k]."""
    layers = tuple(range(experts.shape[1]))
    model = MoEModel("v", "v", 1, len(layers), layers, EXPERTS, experts.shape[2])
    rows = TokenRows(
        step=np.arange(len(ids)),
        request=np.arange(len(ids), dtype=np.int32) // TOKENS,
        position=np.arange(len(ids), dtype=np.int32) % TOKENS,
        phase=None,
        experts=experts.astype(np.uint8),
        token_id=ids.astype(np.int32),
    )
    return Trace.in_memory(model, rows)


def drawn(seed: int, share: float) -> Trace:
    """Ids of 10; in layer 0 a `share` of tokens go to two experts by their id, others anywhere."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 10, REQUESTS * TOKENS)
    experts = np.argsort(rng.random((len(ids), 2, EXPERTS)), axis=2)[:, :, :2]
    by_id = rng.random(len(ids)) < share
    experts[by_id, 0] = np.stack([ids % 4, 4 + ids % 4], axis=1)[by_id]
    return trace_of(ids, experts)


def test_what_the_id_decides_is_explained_and_what_it_does_not_is_not() -> None:
    result = analyze_vocabulary(drawn(0, 1.0))
    decided, free = result.layers
    assert decided.explained == pytest.approx(1.0)
    assert decided.specialization == 1.0
    assert abs(free.explained) < 0.01
    assert free.specialization == pytest.approx(free.specialization_null, abs=0.03)
    assert result.experts[0].layer == 0
    assert result.experts[0].share == 1.0
    assert result.interval.low < result.explained < result.interval.high


def test_ids_that_tell_nothing_are_called_so() -> None:
    found = [analyze_vocabulary(drawn(seed, 0.0)) for seed in range(12)]
    p = np.array([one.p_value for one in found])
    assert 0.25 < p.mean() < 0.75
    assert abs(np.mean([one.explained for one in found])) < 0.003


def test_information_is_that_of_the_table() -> None:
    trace = drawn(3, 0.5)
    result = analyze_vocabulary(trace)
    table = np.zeros((10, EXPERTS))
    for token, chosen in zip(trace.token_id, trace.experts(0), strict=True):
        table[token, chosen] += 1
    joint = table / table.sum()
    mutual = entropy(joint.sum(0), base=2) + entropy(joint.sum(1), base=2)
    mutual -= entropy(joint.ravel(), base=2)
    assert result.layers[0].expert_information == pytest.approx(mutual)
    # The same, expert by expert, weighted by its use.
    assert joint.sum(0) @ result.concentration[0] == pytest.approx(mutual)
    used = np.stack([(trace.experts(0) == expert).any(axis=1) for expert in range(EXPERTS)], axis=1)
    given = [
        sum(
            (trace.token_id == x).mean() * entropy(pair(u[trace.token_id == x]), base=2)
            for x in range(10)
        )
        for u in used.T
    ]
    whole = np.array([entropy(pair(u), base=2) for u in used.T])
    np.testing.assert_allclose(result.explained_by_expert[0], (whole - given) / whole)
    strongest = [(table[x] / (trace.token_id == x).sum()).max() for x in range(10)]
    assert result.layers[0].specialization == pytest.approx(np.mean(strongest))


def pair(used: NDArray[np.bool_]) -> list[float]:
    return [float(used.mean()), 1 - float(used.mean())]


def test_taste_of_a_request_is_not_vocabulary() -> None:
    """Each request has ids and experts of its own: shuffling within it tells them apart."""
    rng = np.random.default_rng(4)
    request = np.arange(REQUESTS * TOKENS) // TOKENS
    ids = request % 4 * 3 + rng.integers(0, 3, len(request))
    experts = (request % 4 * 2 + rng.integers(0, 2, len(request)))[:, None, None]
    result = analyze_vocabulary(trace_of(ids, experts))
    assert result.expert_information == pytest.approx(2.0, abs=0.05)  # ids tell the request
    assert abs(result.explained) < 0.05


def test_rare_ids_and_no_ids_are_refused(trace: Trace) -> None:
    many = np.arange(REQUESTS * TOKENS)
    experts = np.zeros((len(many), 1, 1), np.int64)
    with pytest.raises(InputError, match="needs token ids that come 10 times"):
        analyze_vocabulary(trace_of(many, experts))
    with pytest.raises(TraceError, match="token ids were not recorded"):
        analyze_vocabulary(trace)
