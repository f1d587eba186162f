"""Figures of a window, a poll at a time, against analysis and replay of the same rows at once."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moeprof
from moeprof import MoEModel, Trace
from moeprof.errors import InputError
from moeprof.live import LiveFigures, State, Status, TraceSource, Watch
from moeprof.live.lru import LruCaches
from moeprof.trace import Phase, TokenRows
from tests.conftest import small_config
from tests.live.rows import ScriptedSource, engine_rows, part, steps_of

SHIPPED = Path(__file__).parents[2] / "traces" / "tiny-m3.moetrace"
MODEL = MoEModel.from_config(small_config())
LAYERS, SLOTS = 3, [1, 4, 15]


def watched(polls: list[TokenRows], window: int) -> LiveFigures:
    source = ScriptedSource(MODEL, [steps_of(rows) for rows in polls])
    watch = Watch(source, slots=SLOTS, steps=window)
    for _ in polls:
        watch.poll()
    return watch.figures


def lru_by_hand(rows: TokenRows, layer: int, slots: int, counted: set[int]) -> tuple[int, int]:
    """Hits and accesses in `counted` steps of one LRU list, newest first, moved one by one."""
    order: list[int] = []
    hits = accesses = 0
    for step in dict.fromkeys(rows.step.tolist()):
        here = np.flatnonzero(rows.step == step)
        here = here if rows.recorded is None else here[rows.recorded[here, layer]]
        needed = list(dict.fromkeys(rows.experts[here, layer].ravel().tolist()))
        if step in counted:
            hits += sum(expert in order[:slots] for expert in needed)
            accesses += len(needed)
        for expert in needed:
            order = [expert, *(other for other in order if other != expert)]
    return hits, accesses


def null_by_hand(decode: TokenRows, steps: set[int]) -> float:
    """Mean over layers and steps of sum over e of 1 - (1 - p_e)^B, one event at a time."""
    inside = part(decode, np.isin(decode.step, list(steps)))
    recorded = inside.recorded
    if recorded is None:
        recorded = np.ones(inside.experts.shape[:2], bool)
    events = []
    for layer in range(LAYERS):
        rows = recorded[:, layer]
        used = np.bincount(inside.experts[rows, layer].ravel(), minlength=16)
        share = used / max(rows.sum(), 1)
        for step in steps:
            size = int(rows[inside.step == step].sum())
            if size:
                events.append(sum(1 - (1 - p) ** size for p in share))
    return math.fsum(events) / len(events)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=14),
    window=st.integers(1, 16),
    cuts=st.sets(st.integers(0, 13)),
    prefill=st.sampled_from([0.0, 0.3, 1.0]),
    missing=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 99),
)
def test_polls_give_what_the_whole_window_gives_at_once(
    sizes: list[int], window: int, cuts: set[int], prefill: float, missing: float, seed: int
) -> None:
    rows = engine_rows(MODEL, sizes, seed=seed, prefill=prefill, missing=missing)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(sizes)), len(sizes)]
    polls = [part(rows, (rows.step >= a) & (rows.step < b)) for a, b in pairwise(bounds)]
    figures = watched(polls, window)

    steps = set(range(max(0, len(sizes) - window), len(sizes)))
    inside = part(rows, np.isin(rows.step, list(steps)))
    assert figures.window_steps == len(steps)
    assert figures.window_tokens == len(inside)
    same_load(figures, Trace.in_memory(MODEL, inside))

    decode = part(rows, rows.phase == Phase.DECODE)
    accesses = sum(lru_by_hand(decode, layer, 1, steps)[1] for layer in range(LAYERS))
    if not accesses:
        assert figures.lru == [] and figures.distinct_per_step is None
        return
    for row in figures.lru:
        hits = [lru_by_hand(decode, layer, row.slots, steps)[0] for layer in range(LAYERS)]
        assert (row.hits, row.accesses) == (sum(hits), accesses)
    assert figures.distinct_null == pytest.approx(null_by_hand(decode, steps))


def same_load(figures: LiveFigures, trace: Trace) -> None:
    """Imbalance and hottest experts are those of `analyze_load`."""
    result = moeprof.analyze_load(trace)
    there = [layer for layer in result.per_layer if layer.assignments]
    ratios = [layer.imbalance for layer in there]
    assert [(n.layer, n.imbalance) for n in figures.per_layer] == [
        (layer.layer, layer.imbalance) for layer in there
    ]
    if there:
        assert figures.mean_imbalance == pytest.approx(np.mean(ratios))
        assert figures.max_imbalance == max(ratios)
    shares = result.load / np.maximum(result.load.sum(axis=1), 1)[:, None]
    for hot in figures.hottest:
        assert hot.share == shares[trace.layers.index(hot.layer), hot.expert]
        assert hot.times_even == pytest.approx(hot.share * 16)
    largest = np.sort(shares[shares > 0])[::-1][:32]
    assert [hot.share for hot in figures.hottest] == largest.tolist()


def test_a_shipped_recording_gives_what_analysis_and_replay_give() -> None:
    trace = moeprof.open_trace(SHIPPED)
    slots = [4, 16, 32]
    with closing(TraceSource(SHIPPED)) as source:
        figures = Watch(source, slots=slots, steps=10_000).caught_up()
    load = moeprof.analyze_load(trace)
    assert figures.state == "ended"
    assert figures.tokens == figures.window_tokens == trace.tokens
    assert figures.mean_imbalance == pytest.approx(load.mean_imbalance, rel=1e-12)
    assert [n.imbalance for n in figures.per_layer] == [n.imbalance for n in load.per_layer]
    replays = moeprof.replay_cache(trace, policy="lru", slots=slots, phase=Phase.DECODE)
    assert [(row.hits, row.accesses) for row in figures.lru] == [
        (row.hits, row.accesses) for row in replays.rows
    ]
    assert figures.distinct_per_step == pytest.approx(replays.experts_per_event, rel=1e-12)


def test_a_window_of_seconds_lets_go_what_is_older() -> None:
    rows = engine_rows(MODEL, [3] * 6)
    polls = [steps_of(part(rows, rows.step // 2 == i)) for i in range(3)]
    times = iter([0.0, 4.0, 8.0, 20.0])
    watch = Watch(ScriptedSource(MODEL, polls), slots=[2], seconds=5.0, clock=lambda: next(times))
    assert [watch.poll().window_steps for _ in range(3)] == [2, 4, 4]
    same_load(watch.figures, Trace.in_memory(MODEL, part(rows, rows.step >= 2)))
    assert watch.poll().window_steps == 0
    assert watch.figures.mean_imbalance is None
    assert watch.figures.per_layer == watch.figures.lru == []


def test_rates_are_of_the_last_ten_seconds() -> None:
    source = ScriptedSource(MODEL, [])
    times = iter([float(n) for n in range(40)])
    watch = Watch(source, steps=4, clock=lambda: next(times))
    rates = []
    for total in [1000, 1010, *[1020] * 11]:
        source.status = replace(source.status, tokens=total, decode_tokens=total)
        rates.append(watch.poll().tokens_per_s)
    assert rates[:3] == [None, 10.0, 10.0]
    assert rates[10] == pytest.approx(2.0)  # 20 tokens in 10 s
    assert rates[12] == 0.0
    source.status = replace(source.status, state=State.GONE)
    assert watch.poll().tokens_per_s is None


def test_another_recording_begins_anew() -> None:
    rows = engine_rows(MODEL, [3] * 4, prefill=0)
    source = ScriptedSource(MODEL, [steps_of(rows), steps_of(part(rows, rows.step < 1))])
    watch = Watch(source, slots=[15], steps=100)
    assert watch.poll().window_steps == 4
    assert watch.figures.lru[0].hits
    source.status = replace(source.status, epoch=1)
    assert watch.poll().window_steps == 1
    assert watch.figures.lru[0].hits == 0  # caches are empty again


def test_caches_live_longer_than_32_bits_of_accesses() -> None:
    caches = LruCaches(1, 4, [2])
    caches._now = (1 << 31) - 3
    ids = np.array([[[0, 1]]], np.uint8)
    hits = [int(caches.look_up(ids, None).hits[0, 0]) for _ in range(4)]
    assert hits == [0, 2, 2, 2]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"steps": 0}, "window of 0 steps"),
        ({"steps": 20_000}, "20,000 steps"),
        ({"seconds": 0.0}, "window of 0.0 s"),
        ({"seconds": float("nan")}, "window of nan s"),
        ({}, "give one of them"),
        ({"steps": 5, "slots": [0]}, "slots"),
        ({"steps": 5, "slots": []}, "slots"),
        ({"steps": 5, "slots": list(range(1, 20))}, "slots"),
    ],
)
def test_what_cannot_be_watched_is_refused(asked: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Watch(ScriptedSource(MODEL, []), **asked)  # type: ignore[arg-type]


def test_nothing_recorded_yet_gives_empty_figures() -> None:
    source = ScriptedSource(MODEL, [])
    source.status = Status(State.WAITING)
    figures = Watch(source, steps=4).poll()
    assert figures.mean_imbalance is None and figures.layers == 0
    assert figures.to_dict()["lru"] == []
