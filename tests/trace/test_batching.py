"""Batching anew serves every row once, by rules that a slow scheduler follows, too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.cache import replay_cache
from moeprof.errors import InputError, TraceError
from moeprof.model import MoEModel
from moeprof.trace import Phase, TokenRows, Trace, open_trace, synthesize_rows
from moeprof.trace.batching import rebatch, request_rows
from tests.conftest import small_config
from tests.recordings import SHIPPED


def made_up(seed: int, requests: int) -> Trace:
    model = MoEModel.from_config(small_config(layers=3, experts=6, top_k=2))
    return Trace.in_memory(model, *synthesize_rows(model, 60, seed=seed, requests=requests))


def scheduled(trace: Trace, seqs: int, tokens: int) -> list[list[int]]:
    """The rows of every step, slowly: what each request has left, prompts and outputs apart."""
    order = list(dict.fromkeys(trace.request.tolist()))
    prompts = {r: np.flatnonzero((trace.request == r) & (trace.phase == 0)).tolist() for r in order}
    outputs = {r: np.flatnonzero((trace.request == r) & (trace.phase == 1)).tolist() for r in order}
    running: list[int] = []
    steps = []
    while order or running:
        while order and len(running) < seqs:
            running.append(order.pop(0))
        decoding = [r for r in running if not prompts[r]]
        room, step = tokens - len(decoding), []
        for r in running:
            if r in decoding:
                step += outputs[r][:1]
                del outputs[r][:1]
            else:
                step += prompts[r][:room]
                taken = len(prompts[r][:room])
                del prompts[r][:taken]
                room -= taken
        steps.append(step)
        running = [r for r in running if prompts[r] or outputs[r]]
    return steps


@settings(max_examples=60)
@given(
    seed=st.integers(0, 99),
    requests=st.integers(1, 9),
    seqs=st.integers(1, 6),
    tokens=st.integers(6, 40),
)
def test_steps_are_the_slow_schedulers(seed: int, requests: int, seqs: int, tokens: int) -> None:
    trace = made_up(seed, requests)
    batching = rebatch(trace, seqs, tokens)
    steps = np.split(batching.order, batching.starts[1:-1])
    assert [step.tolist() for step in steps] == scheduled(trace, seqs, tokens)
    assert sorted(batching.order.tolist()) == list(range(trace.tokens))
    assert np.diff(batching.starts).max() <= tokens


def test_arrival_decides_who_comes_first() -> None:
    trace = made_up(0, 3)
    late = {one.index: 9.0 - one.index for one in trace.requests}
    arrived = [type(one)(**{**vars(one), "arrival_s": late[one.index]}) for one in trace.requests]
    again = Trace(trace.manifest, trace._batches, arrived)
    order = trace.request[rebatch(again, 1, 100).order]
    assert list(dict.fromkeys(order.tolist())) == sorted(late, reverse=True)


def test_a_replay_of_other_batches_reads_the_same_tokens() -> None:
    trace = open_trace(SHIPPED)
    own = replay_cache(trace, slots=16, phase=Phase.DECODE)
    one = replay_cache(trace, slots=16, phase=Phase.DECODE, max_num_seqs=1)
    many = replay_cache(trace, slots=16, phase=Phase.DECODE, max_num_seqs=64, scope="global")
    assert own.tokens == one.tokens == many.tokens
    assert one.rows[0].accesses == one.tokens * trace.top_k * len(trace.layers)
    assert many.rows[0].accesses < one.rows[0].accesses
    assert many.steps < one.steps == one.tokens


def test_what_cannot_be_batched_is_refused() -> None:
    trace = made_up(0, 3)
    with pytest.raises(InputError, match="at least 1"):
        rebatch(trace, 0)
    with pytest.raises(InputError, match="at least one for each"):
        rebatch(trace, 8, 4)
    rows = TokenRows(
        **{**vars(synthesize_rows(trace.model, 20)[0]), "request": np.full(20, -1, np.int32)}
    )
    with pytest.raises(TraceError, match="must say its request"):
        rebatch(Trace.in_memory(trace.model, rows), 2)


@given(seed=st.integers(0, 99), draw=st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_requests_drawn_anew_are_whole_and_in_their_order(seed: int, draw: list[int]) -> None:
    requests = request_rows(made_up(seed, 5))
    draw = [number % len(requests.prompt) for number in draw]
    drawn = requests.drawn(np.array(draw))
    for place, number in enumerate(draw):
        whole = requests.rows[requests.first[number] : requests.first[number + 1]]
        here = drawn.rows[drawn.first[place] : drawn.first[place + 1]]
        np.testing.assert_array_equal(here, whole)
        assert drawn.prompt[place] == requests.prompt[number]


def test_some_rows_alone_can_be_batched() -> None:
    trace = made_up(3, 4)
    keep = trace.request != 2
    rows = request_rows(trace, keep).batched(2).order
    np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(keep))
