"""The one-pass curve equals a plain LRU replayed at every size, and keeps its laws."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.cache import lru_curve
from moeprof.cache.events import Steps, find_steps
from moeprof.cache.kernels import new_timeline
from moeprof.errors import InputError, TraceError
from moeprof.model import MoEModel
from moeprof.trace import Phase, TokenRows, Trace, open_trace, synthesize_rows
from tests.analysis.damage import with_foreign_id
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


@given(
    tokens=st.integers(2, 80),
    seed=st.integers(0, 99),
    layers=st.integers(2, 4),
    top_k=st.integers(1, 4),
    repeat=st.sampled_from([0.0, 0.5, 1.0]),
    prefill=st.sampled_from([0.0, 0.5]),
)
def test_a_global_lru_never_hits_before_all_other_layers_fit(
    tokens: int, seed: int, layers: int, top_k: int, repeat: float, prefill: float
) -> None:
    model = MoEModel.from_config(small_config(layers=layers + 1, experts=6, top_k=top_k))
    rows, _ = synthesize_rows(model, tokens, seed=seed, repeat=repeat, prefill=prefill)
    curve = lru_curve(Trace.in_memory(model, rows), scope="global")
    assert curve.hitless_slots == (layers - 1) * top_k
    assert curve.at(curve.hitless_slots) == 0.0


def test_the_jump_begins_one_slot_later_and_ends_at_the_token_cycle(model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 500, requests=1, prefill=0.0, repeat=1.0)
    curve = lru_curve(Trace.in_memory(model, rows), scope="global", phase=Phase.DECODE)
    assert (curve.hitless_slots, curve.token_cycle) == (6, 9)
    assert curve.at(6) == 0.0
    assert curve.at(7) > 0.3
    assert curve.at(9) > 0.99


def test_m3_can_hit_below_its_token_cycle() -> None:
    model = MoEModel.preset("minimax-m3")
    rows, _ = synthesize_rows(model, 20, requests=1, prefill=0.0, repeat=1.0)
    curve = lru_curve(Trace.in_memory(model, rows), scope="global")
    assert curve.token_cycle == 228
    assert curve.at(224) == 0.0
    assert curve.at(225) > 0.0


@pytest.mark.parametrize("experts", [1, 255, 256, 257])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_curve_is_the_loop_where_the_id_type_changes(experts: int, scope: str) -> None:
    shape = small_config(layers=3, experts=experts, top_k=min(experts, 3))
    model = MoEModel.from_config(shape)
    rows, requests = synthesize_rows(model, 300, skew=0.2, repeat=0.1)
    rows.experts[:3, :, 0] = experts - 1  # the last id is used
    trace = Trace.in_memory(model, rows, requests)
    curve = lru_curve(trace, scope=scope)
    for slots in sorted({1, experts // 2, experts} & {*curve.slots}):
        assert round(curve.at(slots) * curve.accesses) == replay(trace, slots, scope), slots


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


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_an_id_that_names_no_expert_is_refused(scope: str) -> None:
    damaged = with_foreign_id()
    words = r"in layer 2 an expert id is not below 16, .* look at the rows"
    with pytest.raises(TraceError, match=words):
        lru_curve(damaged, scope=scope)
    damaged.path = Path("run.moetrace")
    with pytest.raises(TraceError, match=r"^run\.moetrace: .* see moeprof validate run\.moetrace$"):
        lru_curve(damaged, scope=scope)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_replay_without_any_layer_is_refused(model: MoEModel, scope: str) -> None:
    rows, _ = synthesize_rows(model, 20)
    nothing = TokenRows(**{**vars(rows), "recorded": np.zeros((20, 3), bool)})
    with pytest.raises(InputError, match="no layer was recorded for any token to replay"):
        lru_curve(Trace.in_memory(model, nothing), scope=scope)


def test_an_unknown_scope_is_refused(trace: Trace) -> None:
    with pytest.raises(InputError, match="scope 'gpu' is not one of layer, global"):
        lru_curve(trace, scope="gpu")


@pytest.mark.parametrize("phase", [None, Phase.DECODE])
def test_step_boundaries_are_found_once(
    trace: Trace, monkeypatch: pytest.MonkeyPatch, phase: Phase | None
) -> None:
    found: list[int] = []

    def counted(trace: Trace, phase: Phase | None = None) -> Steps:
        steps = find_steps(trace, phase)
        found.append(int(steps.starts[-1]))
        return steps

    monkeypatch.setattr("moeprof.cache.curve.find_steps", counted)
    assert [lru_curve(trace, phase=phase).tokens] == found
