"""Locality is what its formulas say, counted by hand and by plain loops."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moeprof.analysis import analyze_locality
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import Phase, TokenRows, Trace, synthesize_rows


def one_layer(ids: list[list[list[int]]], experts: int = 6) -> Trace:
    """A trace of decode tokens, ids[request][token][slot], one layer."""
    lengths = [len(request) for request in ids]
    flat: NDArray[np.uint8] = np.array([t for request in ids for t in request], np.uint8)
    model = MoEModel("tiny", "tiny", 1, 1, (0,), experts, flat.shape[1])
    tokens = len(flat)
    rows = TokenRows(
        step=np.arange(tokens),
        request=np.repeat(np.arange(len(ids), dtype=np.int32), lengths),
        position=np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        phase=np.full(tokens, Phase.DECODE, np.int8),
        experts=flat[:, None],
    )
    return Trace.in_memory(model, rows)


def test_by_hand() -> None:
    result = analyze_locality(one_layer([[[0, 1], [1, 2], [0, 1]], [[3, 4], [3, 4]]]))
    assert result.next_token_repeat == pytest.approx((1 + 1 + 2) / 3 / 2)
    assert result.repeat_by_lag == pytest.approx({1: 2 / 3, 2: 1.0})
    assert result.working_set == pytest.approx({1: 2.0, 2: 2.5})
    # request 0 uses its experts in 2, 3 and 1 of 3 tokens, request 1 two others always
    assert result.distinct_by_batch == pytest.approx({1: 2.0, 2: 4.0})
    assert result.first_uses == pytest.approx(5 / 10)
    assert result.reuse_tokens == {"p50": 1, "p90": 2, "p99": 2}
    share = np.array([2, 3, 1, 2, 2]) / 5
    assert result.distinct_null[4] == pytest.approx((1 - (1 - share) ** 4).sum())


@given(data=st.data())
def test_distinct_by_batch_is_the_mean_over_every_choice(data: st.DataObject) -> None:
    token = st.permutations(range(6)).map(lambda order: order[:2])
    request = st.lists(token, min_size=1, max_size=3)
    ids = data.draw(st.lists(request, min_size=1, max_size=4))
    result = analyze_locality(one_layer(ids))
    for size, mean in result.distinct_by_batch.items():
        sets = [
            np.mean([len(set().union(*map(set, tokens))) for tokens in product(*chosen)])
            for chosen in combinations(ids, size)
        ]
        assert mean == pytest.approx(np.mean(sets))


def test_requests_that_interleave_are_taken_apart() -> None:
    apart = one_layer([[[0, 1], [0, 1]], [[2, 3], [2, 3]]])
    rows = next(apart.rows())
    order = [0, 2, 1, 3]
    mixed = TokenRows(
        rows.step,
        rows.request[order],
        rows.position[order],
        rows.phase,
        rows.experts[order],
    )
    assert analyze_locality(Trace.in_memory(apart.model, mixed)) == analyze_locality(apart)


def test_a_gap_in_positions_is_no_pair() -> None:
    trace = one_layer([[[0, 1], [0, 1], [2, 3]]])
    rows = next(trace.rows())
    gap = replace(rows, position=np.array([0, 1, 5], np.int32))
    assert analyze_locality(Trace.in_memory(trace.model, gap)).next_token_repeat == 1.0


def test_places_that_were_not_recorded_do_not_count(model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 90, requests=3)
    recorded = np.ones(rows.experts.shape[:2], bool)
    recorded[::4, 1] = False
    holes = TokenRows(rows.step, rows.request, rows.position, rows.phase, rows.experts, recorded)
    result = analyze_locality(Trace.in_memory(model, holes, requests))
    assert result.distinct_by_batch[1] == pytest.approx(model.top_k)
    assert result.working_set[1] == pytest.approx(model.top_k)


def test_prompts_alone_are_refused(model: MoEModel) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 30, prefill=1.0))
    with pytest.raises(InputError, match="no decode tokens"):
        analyze_locality(trace)
