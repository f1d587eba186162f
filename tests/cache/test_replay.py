"""The compiled replay equals slow oracles, another simulator hit for hit, and keeps its laws."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moeprof.cache import POLICIES, CacheReplay, best_quotas, judge_cache, lru_curve, replay_cache
from moeprof.errors import InputError, TraceError
from moeprof.model import MoEModel
from moeprof.trace import Trace, open_trace, synthesize_rows
from tests.analysis.damage import with_foreign_id
from tests.cache.oracles import (
    ORACLES,
    Events,
    big_moe_on_edge,
    fewest_misses,
    kept_soonest,
)
from tests.cache.ranks import RANKS, ActivationMatrix, Weights, ranked_by
from tests.cache.test_curve import events
from tests.conftest import small_config
from tests.recordings import SHIPPED, recording, shared_folder

EXPERTS = 7
SCOPES = st.sampled_from(["layer", "global"])
ONLINE = [name for name, policy in POLICIES.items() if not policy.fitted and "belady" not in name]


def made_up(
    seed: int, tokens: int = 40, batch: int = 1, experts: int = EXPERTS, top_k: int = 2
) -> Trace:
    """Two MoE layers of `experts`, `batch` tokens a step, with gate weights."""
    model = MoEModel.from_config(small_config(layers=3, experts=experts, top_k=top_k))
    rows, requests = synthesize_rows(model, tokens, seed=seed, prefill=0.0)
    rows.step[:] = np.arange(tokens) // batch
    gates = np.random.default_rng(seed).random(rows.experts.shape).astype(np.float16)
    return Trace.in_memory(model, replace(rows, weights=gates), requests)


def streams(trace: Trace, scope: str) -> list[list[list[int]]]:
    """The events that share a cache, as items: a list a layer, or one for all."""
    named: dict[int, list[list[int]]] = {}
    for event in events(trace):
        layer = event[0][0]
        items = [layer * trace.experts_per_layer + expert for _, expert in event]
        named.setdefault(layer if scope == "layer" else 0, []).append(items)
    return list(named.values())


def only(trace: Trace, policy: str, slots: int, scope: str, **options: object) -> CacheReplay:
    """The row of one replay."""
    replays = replay_cache(trace, policy=policy, slots=slots, scope=scope, fit=0.0, **options)  # type: ignore[arg-type]
    return replays.rows[0]


@settings(max_examples=60)
@given(
    policy=st.sampled_from(sorted(ORACLES)),
    seed=st.integers(0, 99),
    batch=st.integers(1, 5),
    slots=st.integers(1, EXPERTS),
    scope=SCOPES,
    contract=st.sampled_from(["atomic", "sequential"]),
)
def test_the_loop_is_the_oracle_event_by_event(
    policy: str, seed: int, batch: int, slots: int, scope: str, contract: str
) -> None:
    trace = made_up(seed, batch=batch)
    row = only(trace, policy, slots, scope, contract=contract, events=True)
    sequential = contract == "sequential"
    expected = [
        ORACLES[policy](stream, slots, sequential=sequential) for stream in streams(trace, scope)
    ]
    assert row.event_misses is not None
    counted = row.event_misses if scope == "layer" else row.event_misses.T.reshape(1, -1)
    assert counted.tolist() == expected
    assert row.misses == sum(map(sum, expected))


@settings(max_examples=80)
@given(
    policy=st.sampled_from(sorted(RANKS)),
    seed=st.integers(0, 99),
    batch=st.integers(1, 5),
    slots=st.integers(1, EXPERTS),
    scope=SCOPES,
    contract=st.sampled_from(["atomic", "sequential"]),
)
def test_what_ranks_residents_is_its_definition_event_by_event(
    policy: str, seed: int, batch: int, slots: int, scope: str, contract: str
) -> None:
    trace = made_up(seed, batch=batch)
    row = only(trace, policy, slots, scope, contract=contract, events=True)
    expected = []
    for stream, weights in zip(
        streams(trace, scope), event_weights(trace, scope, policy == "mrs"), strict=True
    ):
        ranks = RANKS[policy](1 if scope == "layer" else len(trace.layers), weights)
        if isinstance(ranks, ActivationMatrix):
            ranks.experts, ranks.begins = EXPERTS, begins(trace)
        expected.append(ranked_by(ranks, stream, slots, sequential=contract == "sequential"))
    assert row.event_misses is not None
    counted = row.event_misses if scope == "layer" else row.event_misses.T.reshape(1, -1)
    assert counted.tolist() == expected


def begins(trace: Trace) -> frozenset[int]:
    """The steps none of whose requests was in the step before."""
    found, before = [], set[int]()
    for step in sorted(set(trace.step.tolist())):
        now = set(trace.request[trace.step == step].tolist())
        found += [] if now & before else [step]
        before = now
    return frozenset(found)


def event_weights(trace: Trace, scope: str, gates: bool) -> list[Weights]:
    """Tokens of every event that want an item, or their gate weights; a list a layer, or one."""
    layers = trace.layers
    found: list[Weights] = [{} for _ in (layers if scope == "layer" else [0])]
    for ordinal, layer in enumerate(layers):
        ids, weights = trace.experts(layer), trace.weights(layer)
        for row, step in enumerate(trace.step.tolist()):
            event = step if scope == "layer" else step * len(layers) + ordinal
            held = found[ordinal if scope == "layer" else 0]
            for expert, gate in zip(ids[row].tolist(), weights[row].tolist(), strict=True):
                key = (event, layer * trace.experts_per_layer + expert)
                held[key] = held.get(key, 0.0) + (gate if gates else 1.0)
    return found


@given(
    policy=st.sampled_from(ONLINE),
    seed=st.integers(0, 30),
    slots=st.integers(1, EXPERTS),
    scope=SCOPES,
    inserts=st.integers(1, 3),
)
@settings(max_examples=40)
def test_no_event_brings_in_more_than_the_cap(
    policy: str, seed: int, slots: int, scope: str, inserts: int
) -> None:
    trace = made_up(seed, batch=3)
    for contract in ("atomic", "sequential"):
        row = only(trace, policy, slots, scope, max_inserts=inserts, contract=contract)
        assert row.loads <= inserts * 2 * len(set(trace.step.tolist()))
    one = only(trace, policy, slots, scope, max_inserts=2 * EXPERTS)
    assert one.misses == only(trace, policy, slots, scope, **LIMITS.get(policy, {})).misses


LIMITS: dict[str, dict[str, object]] = {"lru-capped": {"max_inserts": 2 * EXPERTS}}


@settings(max_examples=40)
@given(
    seed=st.integers(0, 99), batch=st.integers(1, 4), slots=st.integers(1, EXPERTS), scope=SCOPES
)
def test_hindsight_is_what_its_definition_keeps(
    seed: int, batch: int, slots: int, scope: str
) -> None:
    trace = made_up(seed, batch=batch)
    found = streams(trace, scope)
    bypass = only(trace, "belady-bypass", slots, scope).misses
    assert bypass == sum(sum(kept_soonest(stream, slots)) for stream in found)
    for policy in [*ONLINE, "belady", "belady-forced", "static-hindsight"]:
        assert only(trace, policy, slots, scope).misses >= bypass - _preloaded(policy, found, slots)


def _preloaded(policy: str, found: list[list[list[int]]], slots: int) -> int:
    """Misses that a list spares because it was loaded before the first event."""
    return len(found) * slots if policy == "static-hindsight" else 0


@settings(max_examples=40)
@given(
    stream=st.lists(
        st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True), min_size=1, max_size=7
    ),
    slots=st.integers(1, 4),
)
def test_bypass_is_the_optimum_by_brute_force(stream: Events, slots: int) -> None:
    assert sum(kept_soonest(stream, slots)) == fewest_misses(stream, slots)


@settings(max_examples=60)
@given(
    policy=st.sampled_from(sorted(POLICIES)),
    seed=st.integers(0, 99),
    batch=st.integers(1, 4),
    slots=st.integers(1, EXPERTS),
    scope=st.sampled_from(["layer", "global", "quota"]),
    contract=st.sampled_from(["atomic", "sequential"]),
)
def test_every_policy_conserves_accesses_and_forgets_nothing_it_has_room_for(
    policy: str, seed: int, batch: int, slots: int, scope: str, contract: str
) -> None:
    trace = made_up(seed, batch=batch)
    replays = replay_cache(
        trace, policy=policy, slots=slots, scope=scope, contract=contract, events=True
    )
    row = replays.rows[0]
    assert row.hits + row.misses == row.accesses == row.accesses_by_layer.sum()
    assert row.event_accesses is not None and row.event_misses is not None
    assert row.event_accesses.sum() == row.accesses and row.event_misses.sum() == row.misses
    assert (row.event_misses <= row.event_accesses).all()
    assert 0 <= row.loads <= row.accesses
    assert replays.fit_steps + replays.steps == len(set(trace.step.tolist()))
    json.dumps(replays.to_dict(), allow_nan=False)
    everything = EXPERTS * (2 if scope == "global" else 1)
    full = replay_cache(trace, policy=policy, slots=everything, scope=scope, fit=0.5).rows[0]
    first = lru_curve(trace, scope="layer").first_uses
    assert full.misses <= first


@given(seed=st.integers(0, 99), slots=st.integers(1, 9), scope=SCOPES)
@settings(max_examples=30)
def test_forced_admission_is_belady_where_an_event_is_one_expert(
    seed: int, slots: int, scope: str
) -> None:
    model = MoEModel.from_config(small_config(layers=3, experts=9, top_k=1))
    trace = Trace.in_memory(model, *synthesize_rows(model, 60, seed=seed, prefill=0.0))
    both = [only(trace, policy, slots, scope).misses for policy in ("belady", "belady-forced")]
    assert both[0] == both[1]


@given(policy=st.sampled_from(ONLINE), seed=st.integers(0, 30), scope=SCOPES)
@settings(max_examples=30)
def test_one_expert_an_event_is_the_same_under_both_contracts(
    policy: str, seed: int, scope: str
) -> None:
    trace = made_up(seed, tokens=60, experts=9, top_k=1)
    rows = [only(trace, policy, 4, scope, contract=name) for name in ("atomic", "sequential")]
    assert rows[0].misses == rows[1].misses


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_lru_is_the_curve_at_every_size_also_below_one_event(scope: str) -> None:
    trace = made_up(3, tokens=120, batch=4)
    curve = lru_curve(trace, scope=scope)
    rows = replay_cache(trace, slots=curve.slots, scope=scope).rows
    assert [row.hit_ratio for row in rows] == curve.hit_ratio


def test_the_conformance_trace_to_the_event() -> None:
    trace = recording("event-atomic-toy")
    row = only(trace, "lru", 2, "layer", events=True)
    folder = shared_folder()
    assert folder is not None and row.event_misses is not None
    stated = json.loads((folder / "event-atomic-toy" / "manifest.json").read_text())["expected"]
    assert (row.accesses, row.hits, row.misses) == (30, 12, 18)
    assert row.event_misses.T.ravel().tolist() == stated["event_misses"]
    assert row.loads == stated["cache_insertions"]


THEIRS = {
    "lru": "LRU",
    "fifo": "FIFO",
    "lfu": "LFU",
    "clock": "Clock",
    "sieve": "Sieve",
    "arc": "ARC",
    "s3-fifo": "S3FIFO",
    "2q": "TwoQ",
    "belady": "Belady",
}


@pytest.mark.skipif(find_spec("libcachesim") is None, reason="libcachesim (GPL) is not installed")
@pytest.mark.parametrize("policy", THEIRS)
@pytest.mark.parametrize(("experts", "slots"), [(128, 32), (128, 100), (200, 61), (250, 25)])
def test_sequential_is_libcachesim_hit_for_hit(policy: str, experts: int, slots: int) -> None:
    rng = np.random.default_rng(experts + slots)
    ids = rng.choice(experts, 5000, p=rng.dirichlet(np.full(experts, 0.3)))
    model = MoEModel.from_config(small_config(layers=2, experts=experts, top_k=1))
    rows, requests = synthesize_rows(model, len(ids), prefill=0.0)
    rows.step[:] = np.arange(len(ids))
    rows.experts[:, 0, 0] = ids
    trace = Trace.in_memory(model, rows, requests)
    row = only(trace, policy, slots, "layer", contract="sequential", events=True)
    assert row.event_misses is not None
    np.testing.assert_array_equal(row.event_misses[0] == 0, _their_hits(THEIRS[policy], ids, slots))


def _their_hits(name: str, ids: NDArray[np.int64], slots: int) -> NDArray[np.bool_]:
    import libcachesim

    cache, request = getattr(libcachesim, name)(cache_size=slots), libcachesim.Request()
    request.obj_size = 1
    due, later = np.zeros(len(ids), np.int64), {}
    for index in range(len(ids) - 1, -1, -1):
        due[index] = later.get(ids[index], 2**62)
        later[ids[index]] = index
    hits = []
    for index, item in enumerate(ids.tolist()):
        request.obj_id, request.next_access_vtime = item, int(due[index])
        request.clock_time = index
        hits.append(cache.get(request))
    return np.array(hits)


@settings(max_examples=60)
@given(seed=st.integers(0, 99), batch=st.integers(1, 6), slots=st.integers(1, 2 * EXPERTS))
def test_big_moe_on_edge_evicts_after_the_batch(seed: int, batch: int, slots: int) -> None:
    trace = made_up(seed, batch=batch)
    batches = [
        [layer * EXPERTS + expert for expert in trace.experts(layer)[trace.step == step].ravel()]
        for step in range(-(-trace.tokens // batch))
        for layer in trace.layers
    ]
    row = only(trace, "lru", slots, "global", contract="bigmoeonedge", events=True)
    assert row.event_misses is not None
    assert row.event_misses.T.ravel().tolist() == big_moe_on_edge(batches, slots)


def test_an_engines_contract_knows_its_own_scope_and_policies() -> None:
    trace = made_up(0)
    with pytest.raises(InputError, match="has scope global, not layer"):
        replay_cache(trace, slots=4, contract="bigmoeonedge", scope="layer")
    with pytest.raises(InputError, match="not policy 'arc'"):
        replay_cache(trace, slots=4, contract="bigmoeonedge", scope="global", policy="arc")


def test_bytes_of_experts_may_be_stated() -> None:
    trace = made_up(0)
    stated = dict.fromkeys(trace.layers, 100)
    row = replay_cache(trace, budget_bytes=850, scope="global", expert_bytes=stated).rows[0]
    assert (
        row.slots == 8 and row.misses == replay_cache(trace, slots=8, scope="global").rows[0].misses
    )
    assert row.bytes_per_token == pytest.approx(100 * row.misses_per_token)
    with pytest.raises(InputError, match="missing"):
        replay_cache(trace, slots=2, expert_bytes={trace.layers[0]: 5})


def test_what_is_fitted_is_judged_on_later_steps() -> None:
    trace = open_trace(SHIPPED)
    replays = replay_cache(trace, policy=["static", "static-hindsight", "lru"], slots=16)
    assert replays.fit_steps == replays.steps == 1024
    assert replays.row("static-hindsight").hits > replays.row("static").hits
    whole = replay_cache(trace, slots=16)
    assert whole.fit_steps == 0 and whole.rows[0].accesses > replays.rows[0].accesses
    with pytest.raises(InputError, match="need steps to be fitted on"):
        replay_cache(trace, policy="static", slots=16, fit=0.0)


def test_bytes_count_where_layers_differ_in_format() -> None:
    trace = open_trace(SHIPPED)
    first, last = trace.layers[0], trace.layers[-1]
    mixed = {"": "fp8", first: "bf16"}
    small = trace.model.bytes_per_expert("fp8")
    budget = 12 * small * len(trace.layers)
    rows = replay_cache(trace, budget_bytes=budget, precision=mixed, events=True).rows
    twelve = replay_cache(trace, slots=12).rows[0].misses_by_layer
    six = replay_cache(trace, slots=6).rows[0].misses_by_layer
    assert rows[0].misses_by_layer[-1] == twelve[-1]
    assert rows[0].misses_by_layer[0] == six[0]  # its experts are twice as large
    assert last != first


@given(
    hits=st.lists(
        st.lists(st.integers(0, 9), min_size=4, max_size=4).map(sorted), min_size=1, max_size=4
    ),
    budget=st.integers(4, 16),
)
def test_quotas_are_the_best_of_all(hits: list[list[int]], budget: int) -> None:
    from itertools import product

    table = np.array(hits)
    total = min(budget, table.size)
    quotas = best_quotas(table, budget)
    assert quotas.sum() == total and quotas.min() >= 1
    best = max(
        sum(row[n - 1] for row, n in zip(hits, way, strict=True))
        for way in product(range(1, 5), repeat=len(hits))
        if sum(way) == total
    )
    assert sum(row[n - 1] for row, n in zip(hits, quotas, strict=True)) == best


def test_quotas_never_lose_on_the_window_they_were_fitted_on() -> None:
    trace = open_trace(SHIPPED)
    first = [row.hits for row in (replay_cache(trace, slots=16, scope="quota", fit=0.5).rows)]
    equal = replay_cache(trace, slots=16, scope="layer", fit=0.5).rows[0].hits
    assert sum(replay_cache(trace, slots=16, scope="quota").rows[0].quotas or []) == 16 * 8
    assert first[0] > 0.95 * equal  # judged on later steps, so not always more


def test_a_verdict_tells_policy_from_working_set() -> None:
    trace = open_trace(SHIPPED)
    small = judge_cache(trace, slots=4)
    assert small.failure in ("working set", "both") and small.optimum < 0.5
    full = judge_cache(trace, slots=64)
    assert full.failure == "none" and full.hit_ratio > 0.99
    below = judge_cache(trace, slots=20, scope="global")
    assert below.cycles < 1 and below.hit_ratio == 0 and "one token cycle" in below.words


def test_damage_and_wrong_requests_are_refused() -> None:
    with pytest.raises(TraceError, match="recording is damaged"):
        replay_cache(with_foreign_id(), slots=4)
    trace = made_up(0)
    for options, words in (
        ({"slots": 0}, "1 to 7 per layer"),
        ({"slots": 8}, "1 to 7 per layer"),
        ({"slots": 15, "scope": "global"}, "1 to 14 in all"),
        ({}, "no cache size"),
        ({"slots": 2, "policy": "mru"}, "is not one of"),
        ({"slots": 2, "contract": ["atomic", "sequential"]}, "do not compare"),
        ({"slots": 2, "precision": {1: "bf16"}}, "not named"),
        ({"slots": 2, "precision": {"": "bf16", 0: "fp8"}}, "no MoE layer"),
    ):
        with pytest.raises(InputError, match=words):
            replay_cache(trace, **options)  # type: ignore[arg-type]
    both = replay_cache(trace, slots=2, contract=["atomic", "sequential"], across_contracts=True)
    assert [row.contract for row in both.rows] == ["atomic", "sequential"]
