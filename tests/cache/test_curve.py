"""The one-pass curve equals a plain LRU replayed at every size, and keeps its laws."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.cache import lru_curve
from moeprof.cache.kernels import new_timeline
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import Phase, TokenRows, Trace, open_trace, synthesize_rows
from tests.conftest import save, small_config


def events(trace: Trace, phase: Phase | None = None) -> Iterator[list[tuple[int, int]]]:
    """Each event's distinct (layer, expert), slowly and plainly."""
    for step in dict.fromkeys(trace.step.tolist()):
        rows = trace.step == step
        if phase is not None:
            rows &= trace.phase == phase
        for layer in trace.layers:
            ids = trace.experts(layer)[rows[trace.recorded(layer)]].ravel().tolist()
            yield [(layer, expert) for expert in dict.fromkeys(ids)]


def replay(trace: Trace, slots: int, scope: str, phase: Phase | None = None) -> int:
    """Hits of an LRU cache of `slots` slots, event by event."""
    caches: dict[int, OrderedDict[tuple[int, int], None]] = {}
    hits = 0
    for event in events(trace, phase):
        for key in event:
            cache = caches.setdefault(key[0] if scope == "layer" else 0, OrderedDict())
            hits += key in cache
        for key in event:
            cache[key] = None
            cache.move_to_end(key)
        while event and len(cache) > slots:
            cache.popitem(last=False)
    return hits


@settings(max_examples=25)
@given(
    tokens=st.integers(1, 60),
    seed=st.integers(0, 99),
    scope=st.sampled_from(["layer", "global"]),
    phase=st.sampled_from([None, Phase.DECODE]),
    nulls=st.booleans(),
)
def test_the_curve_is_the_loop_at_every_size(
    tokens: int, seed: int, scope: str, phase: Phase | None, nulls: bool
) -> None:
    model = MoEModel.from_config(small_config(layers=3, experts=6, top_k=2))
    rows, requests = synthesize_rows(model, tokens, seed=seed)
    if nulls:
        recorded = np.random.default_rng(seed).random((tokens, 2)) < 0.8
        rows = TokenRows(**{**vars(rows), "recorded": recorded})
    trace = Trace.in_memory(model, rows, requests)
    if phase is not None and not (trace.phase == phase).any():
        return
    curve = lru_curve(trace, scope=scope, phase=phase)
    assert curve.accesses == sum(len(event) for event in events(trace, phase))
    for slots, ratio in zip(curve.slots, curve.hit_ratio, strict=True):
        assert round(ratio * curve.accesses) == replay(trace, slots, scope, phase), slots


@given(seed=st.integers(0, 50), scope=st.sampled_from(["layer", "global"]))
def test_more_slots_never_hit_less(model: MoEModel, seed: int, scope: str) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 200, seed=seed))
    curve = lru_curve(trace, scope=scope)
    assert (np.diff(curve.hit_ratio) >= 0).all()
    full = round(curve.hit_ratio[-1] * curve.accesses)
    assert full + curve.first_uses == curve.accesses
    misses = np.array(curve.misses_per_token) * curve.tokens
    np.testing.assert_allclose(np.array(curve.hit_ratio) * curve.accesses + misses, curve.accesses)


@given(seed=st.integers(0, 50), scope=st.sampled_from(["layer", "global"]))
def test_names_of_experts_do_not_matter(model: MoEModel, seed: int, scope: str) -> None:
    rows, _ = synthesize_rows(model, 200, seed=seed)
    names = np.random.default_rng(seed).permutation(16).astype(np.uint8)
    renamed = TokenRows(**{**vars(rows), "experts": names[rows.experts]})
    one, other = (lru_curve(Trace.in_memory(model, r), scope=scope) for r in (rows, renamed))
    assert one.hit_ratio == other.hit_ratio


def test_below_one_token_cycle_a_global_lru_never_hits_in_decode(model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 500, prefill=0.0, repeat=0.9)
    curve = lru_curve(Trace.in_memory(model, rows), scope="global", phase=Phase.DECODE)
    assert curve.token_cycle == 9
    assert curve.at(6) == 0.0
    assert curve.at(9) > 0.5


def test_steps_that_straddle_stored_batches_count_once(
    tmp_path, model: MoEModel, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    from moeprof.trace import TraceWriter
    from tests.trace.test_store import part

    rows, requests = synthesize_rows(model, 400, requests=3)
    whole = Trace.in_memory(model, rows, requests)
    with TraceWriter(tmp_path / "t", model, segment_bytes=1) as writer:
        for start in range(0, 400, 7):
            writer.write(part(rows, start, min(start + 7, 400)))
            writer.flush()
    for scope in ("layer", "global"):
        cut = lru_curve(open_trace(tmp_path / "t"), scope=scope)
        assert cut.to_dict() == lru_curve(whole, scope=scope).to_dict()


def test_a_long_trace_compacts_its_timeline(model: MoEModel) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 3000, prefill=0.0))
    assert 3 * len(new_timeline(48).latest) < 3000 * 9
    curve = lru_curve(trace, scope="global")
    for slots in (9, 20, 40):
        assert round(curve.at(slots) * curve.accesses) == replay(trace, slots, "global")


def test_an_empty_replay_is_refused(tmp_path, model: MoEModel) -> None:  # type: ignore[no-untyped-def]
    trace = open_trace(save(tmp_path / "t", model, *synthesize_rows(model, 5, prefill=1.0)))
    with pytest.raises(InputError, match="holds no decode tokens"):
        lru_curve(trace, phase=Phase.DECODE)
