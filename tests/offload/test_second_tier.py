"""Two tiers at once against a plain simulation of both."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.cache import replay_cache
from moeprof.cache.results import MissStream
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.offload.second_tier import replay_second_tier
from moeprof.trace import Phase, Trace, synthesize_rows


def plain_tiers(trace: Trace, slots: int, ram: int) -> np.ndarray:
    """[layers, steps] reads from a drive under an LRU a layer and one LRU of host memory."""
    layers, experts = len(trace.layers), trace.experts_per_layer
    steps = np.unique(trace.step, return_inverse=True)[1]
    first = [OrderedDict[int, None]() for _ in range(layers)]
    loaded = [(layer, expert) for expert in range(experts) for layer in range(layers)][:ram]
    second = OrderedDict.fromkeys(loaded)
    reads = np.zeros((layers, steps.max() + 1), int)
    for step in range(steps.max() + 1):
        for place, layer in enumerate(trace.layers):
            named = list(dict.fromkeys(trace.experts(layer)[steps == step].ravel().tolist()))
            held = first[place]
            for expert in [one for one in named if one not in held]:
                if (place, expert) in second:
                    second.move_to_end((place, expert))
                    continue
                reads[place, step] += 1
                if len(second) == ram:
                    second.popitem(last=False)
                second[place, expert] = None
            for expert in named:
                if expert not in held and len(held) == slots:
                    del held[next(one for one in held if one not in named)]
                held[expert] = None
                held.move_to_end(expert)
    return reads


def test_decode_of_one_request_equals_a_plain_simulation(model: MoEModel) -> None:
    whole = Trace.in_memory(model, *synthesize_rows(model, 300, requests=1))
    for slots, ram in ((3, 10), (5, 20), (8, 40), (15, 47)):
        stream = (
            replay_cache(whole, slots=slots, miss_stream=True, phase=Phase.DECODE)
            .rows[0]
            .miss_stream
        )
        assert stream is not None
        decode = _decode_alone(whole, model)
        assert (replay_second_tier(stream, 16, ram) == plain_tiers(decode, slots, ram)).all()


def _decode_alone(trace: Trace, model: MoEModel) -> Trace:
    from dataclasses import fields, replace

    rows = next(trace.rows())
    kept = rows.phase == Phase.DECODE
    parts = {f.name: getattr(rows, f.name) for f in fields(rows)}
    cut = {name: part[kept] for name, part in parts.items() if isinstance(part, np.ndarray)}
    return Trace.in_memory(model, replace(rows, **cut))


def test_ends_of_its_size(model: MoEModel, trace: Trace) -> None:
    stream = replay_cache(trace, slots=4, miss_stream=True).rows[0].miss_stream
    assert stream is not None
    assert not replay_second_tier(stream, 16, 48).any()
    assert (replay_second_tier(stream, 16, 0) == stream.counts).all()


def test_a_stream_has_all_misses_of_all_steps(trace: Trace) -> None:
    for scope, slots in (("layer", 6), ("global", 18)):
        row = replay_cache(trace, slots=slots, scope=scope, miss_stream=True).rows[0]
        assert row.miss_stream is not None
        counts, experts = row.miss_stream
        assert counts.sum() == row.misses
        assert [len(ids) for ids in experts] == counts.sum(axis=1).tolist()
        assert all((ids < 16).all() for ids in experts)


def test_sequential_has_no_stream(trace: Trace) -> None:
    with pytest.raises(InputError, match="sequential"):
        replay_cache(trace, slots=4, contract="sequential", miss_stream=True)


@given(st.lists(st.integers(0, 7), max_size=60), st.integers(1, 7))
def test_lru_misses_is_lru(asked: list[int], slots: int) -> None:
    held: OrderedDict[int, None] = OrderedDict.fromkeys(range(slots))
    missed = 0
    for item in asked:
        if item not in held:
            missed += 1
            held.popitem(last=False)
        held[item] = None
        held.move_to_end(item)
    stream = MissStream(np.array([[len(asked)]]), [np.array(asked, np.uint16)])
    assert replay_second_tier(stream, 8, slots).tolist() == [[missed]]
