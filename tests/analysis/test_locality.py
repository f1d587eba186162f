"""Locality is what its formulas say, counted by hand and by plain loops."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moeprof.analysis import analyze_locality
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import Phase, TokenRows, Trace, synthesize_rows
from tests.recordings import recording


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


@settings(max_examples=20)
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


def test_the_bits_of_every_expert_count() -> None:
    """More experts than one word of bits holds, one of them in each word."""
    result = analyze_locality(one_layer([[[0, 64, 199], [64, 199, 1], [63, 128, 65]]], experts=200))
    assert result.next_token_repeat == pytest.approx((2 + 0) / 2 / 3)
    assert result.working_set == pytest.approx({1: 3.0, 2: 4.0})


@settings(max_examples=20)
@given(data=st.data())
def test_windows_are_what_a_plain_loop_finds(data: st.DataObject) -> None:
    token = st.permutations(range(6)).map(lambda order: order[:2])
    ids = data.draw(st.lists(st.lists(token, min_size=1, max_size=9), min_size=1, max_size=3))
    for width, mean in analyze_locality(one_layer(ids)).working_set.items():
        starts = [(r, n) for r in ids for n in range(0, len(r) - width + 1, width)]
        sizes = [len({e for t in request[n : n + width] for e in t}) for request, n in starts]
        assert mean == pytest.approx(np.mean(sizes))


@settings(max_examples=20)
@given(data=st.data())
def test_reuse_is_what_a_plain_loop_finds(data: st.DataObject) -> None:
    token = st.permutations(range(5)).map(lambda order: order[:2])
    ids = data.draw(st.lists(st.lists(token, min_size=1, max_size=8), min_size=1, max_size=3))
    gaps, firsts = [], 0
    for request in ids:
        last: dict[int, int] = {}
        for place, chosen in enumerate(request):
            gaps += [place - last[expert] for expert in chosen if expert in last]
            firsts += sum(expert not in last for expert in chosen)
            last |= dict.fromkeys(chosen, place)
    result = analyze_locality(one_layer(ids))
    assert result.first_uses == pytest.approx(firsts / (firsts + len(gaps)))
    middle = np.sort(gaps)[-(-len(gaps) // 2) - 1] if gaps else None
    assert result.reuse_tokens.get("p50") == middle


def test_a_batch_of_more_requests_than_were_recorded_draws_them_again() -> None:
    ids = [[[0, 1], [0, 2]], [[3, 4], [3, 4]]]
    result = analyze_locality(one_layer(ids))
    assert set(result.distinct_by_batch) == {1, 2}
    share = np.array([1, 0.5, 0.5, 1, 1, 0]) / 2  # of both requests, each its own shares
    assert result.distinct_resampled[8] == pytest.approx((1 - (1 - share) ** 8).sum())
    even = 6 * (1 - (4 / 6) ** 8)
    assert result.distinct_uniform[8] == pytest.approx(even)


def test_prompts_are_counted_in_chunks_from_their_start() -> None:
    rows = next(one_layer([[[0, 1], [1, 2], [3, 4], [3, 5]]]).rows())
    phase = np.array([0, 0, 0, 1], np.int8)  # a prompt of three tokens, then one of decode
    trace = Trace.in_memory(one_layer([[[0, 1]]]).model, replace(rows, phase=phase))
    prefill = analyze_locality(trace).prefill
    assert prefill and prefill.distinct_by_chunk == pytest.approx({1: 2.0, 2: 3.0})
    assert prefill.next_token_repeat == pytest.approx((1 + 0) / 2 / 2)
    assert prefill.tokens == 3


def test_intervals_hold_the_figures_and_shrink_with_requests(model: MoEModel) -> None:
    def wide(requests: int) -> float:
        made = synthesize_rows(model, 40 * requests, requests=requests, prefill=0.0, skew=1.0)
        result = analyze_locality(Trace.in_memory(model, *made))
        interval, repeat = result.repeat_interval, result.next_token_repeat
        assert interval and repeat and interval.low < repeat < interval.high
        for size, of_batch in result.distinct_intervals.items():
            figures = result.distinct_by_batch | result.distinct_resampled
            assert of_batch.low <= figures[size] <= of_batch.high or size == 1
        return interval.high - interval.low

    assert wide(64) < wide(4)


def test_one_request_has_no_interval() -> None:
    result = analyze_locality(one_layer([[[0, 1], [1, 2]]]))
    assert result.repeat_interval is None and result.distinct_intervals == {}


@pytest.mark.parametrize(
    ("name", "repeat"),
    [("gpt-oss-20b", 0.44), ("olmoe-1b-7b", 0.435), ("granite-3.0-1b", 0.425)],
)
def test_recordings_repeat_as_is_known(name: str, repeat: float) -> None:
    """Shares that their publishers or earlier tools counted on the same files."""
    result = analyze_locality(recording(name))
    assert result.next_token_repeat == pytest.approx(repeat, abs=0.005)
    if name == "gpt-oss-20b":
        assert all(segment.srp > segment.srp_null for segment in result.segments)
        assert result.segment_cache
        one, two, four = result.segment_cache.hit_ratio.values()
        assert one < 0.6 < two < four  # twice top-k serves most, as the paper of SCH says


def test_the_coffee_text_of_deepseek_repeats_as_is_known() -> None:
    whole = recording("deepseek-v4-flash")
    rows = next(whole.rows())
    coffee = rows.select(np.flatnonzero(rows.request == 2))  # k0_coffee is the third file by name
    trace = Trace.in_memory(whole.model, coffee)
    assert analyze_locality(trace).next_token_repeat == pytest.approx(0.37, abs=0.01)
