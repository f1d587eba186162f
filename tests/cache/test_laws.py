"""What every replay keeps, whatever its policy: names, batches, layers and files do not matter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.cache import POLICIES, CacheReplay, replay_cache
from moeprof.cache.policies import load_policy
from moeprof.model import MoEModel
from moeprof.trace import TokenRows, Trace, TraceWriter, open_trace, synthesize_rows
from tests.conftest import small_config
from tests.trace.test_store import part

EXPERTS = 7


def of_events_alone(policy: str) -> bool:
    """Whether it asks for no more than which experts events need: no gates, no token counts."""
    more = ("READS_GATES", "COUNTS_TOKENS", "renew", "prefill")
    return not any(getattr(load_policy(policy), name, False) for name in more)


EVERY = st.sampled_from([policy for policy in sorted(POLICIES) if of_events_alone(policy)])
SCOPES = st.sampled_from(["layer", "global"])
# Ties between experts that these rank alike are broken by use, never by id.
BLIND_TO_NAMES = ["lru", "fifo", "clock", "sieve", "slru", "2q", "arc", "s3-fifo", "w-tinylfu"]
BLIND_TO_NAMES += ["lfu", "lfu-perfect", "random"]


def shape(layers: int = 2) -> MoEModel:
    return MoEModel.from_config(small_config(layers=layers + 1, experts=EXPERTS, top_k=2))


def rows_of(seed: int, batch: int, layers: int = 2) -> TokenRows:
    """Forty tokens, `batch` a step."""
    rows, _ = synthesize_rows(shape(layers), 40, seed=seed, prefill=0.0)
    return TokenRows(**{**vars(rows), "step": np.arange(40) // batch})


def only(trace: Trace, policy: str, slots: int, scope: str) -> CacheReplay:
    replays = replay_cache(trace, policy=policy, slots=slots, scope=scope, fit=0.5, events=True)
    return replays.rows[0]


def misses(trace: Trace, policy: str, slots: int, scope: str) -> list[list[int]]:
    """[layers, steps]"""
    found = only(trace, policy, slots, scope).event_misses
    assert found is not None
    listed: list[list[int]] = found.tolist()
    return listed


@settings(max_examples=50)
@given(
    policy=st.sampled_from(BLIND_TO_NAMES),
    seed=st.integers(0, 99),
    batch=st.integers(1, 4),
    slots=st.integers(1, EXPERTS),
    scope=SCOPES,
)
def test_names_of_experts_do_not_matter(
    policy: str, seed: int, batch: int, slots: int, scope: str
) -> None:
    rows = rows_of(seed, batch)
    names = np.random.default_rng(seed).permutation(EXPERTS).astype(np.uint8)
    renamed = TokenRows(**{**vars(rows), "experts": names[rows.experts]})
    one, other = (Trace.in_memory(shape(), each) for each in (rows, renamed))
    assert misses(one, policy, slots, scope) == misses(other, policy, slots, scope)


@settings(max_examples=50)
@given(
    policy=EVERY,
    seed=st.integers(0, 99),
    batch=st.integers(1, 4),
    slots=st.integers(1, EXPERTS),
    scope=SCOPES,
)
def test_an_event_is_a_set(policy: str, seed: int, batch: int, slots: int, scope: str) -> None:
    rows = rows_of(seed, batch)
    twice = part(rows, 0, 40)
    order = np.lexsort((np.tile(np.arange(40), 2), np.tile(rows.step, 2)))
    doubled = {
        name: None if array is None else np.concatenate([array, array])[order]
        for name, array in vars(twice).items()
    }
    one, other = (Trace.in_memory(shape(), each) for each in (rows, TokenRows(**doubled)))
    assert misses(one, policy, slots, scope) == misses(other, policy, slots, scope)


@settings(max_examples=50)
@given(
    policy=EVERY, seed=st.integers(0, 99), batch=st.integers(1, 4), slots=st.integers(1, EXPERTS)
)
def test_layers_with_caches_of_their_own_do_not_meet(
    policy: str, seed: int, batch: int, slots: int
) -> None:
    rows = rows_of(seed, batch, layers=3)
    together = misses(Trace.in_memory(shape(3), rows), policy, slots, "layer")
    for layer in range(3):
        alone = TokenRows(**{**vars(rows), "experts": rows.experts[:, layer : layer + 1]})
        for scope in ("layer", "global"):
            assert misses(Trace.in_memory(shape(1), alone), policy, slots, scope) == [
                together[layer]
            ]


@settings(max_examples=50)
@given(
    policy=EVERY,
    seed=st.integers(0, 99),
    batch=st.integers(1, 4),
    slots=st.integers(1, EXPERTS),
)
def test_a_layer_that_was_not_recorded_for_a_token_asks_for_nothing(
    policy: str, seed: int, batch: int, slots: int
) -> None:
    rows = rows_of(seed, batch, layers=1)
    recorded = np.random.default_rng(seed).random((40, 1)) < 0.7
    recorded[:: max(batch, 1)] = True  # no step is left without a token
    some = TokenRows(**{**vars(rows), "recorded": recorded})
    kept = {
        name: None if array is None else array[recorded[:, 0]] for name, array in vars(rows).items()
    }
    one, other = (Trace.in_memory(shape(1), each) for each in (some, TokenRows(**kept)))
    assert misses(one, policy, slots, "layer") == misses(other, policy, slots, "layer")


@pytest.mark.parametrize("policy", list(filter(of_events_alone, sorted(POLICIES))))
def test_how_rows_are_stored_does_not_matter_and_the_same_seed_gives_the_same_bytes(
    policy: str, tmp_path: Path
) -> None:
    rows = rows_of(3, batch=3)
    with TraceWriter(tmp_path / "t", shape(), segment_bytes=1) as writer:
        for start in range(0, 40, 7):
            writer.write(part(rows, start, min(start + 7, 40)))
            writer.flush()
    for scope in ("layer", "global"):
        whole, again, stored = (
            replay_cache(trace, policy=policy, slots=4, scope=scope, fit=0.5)
            for trace in (Trace.in_memory(shape(), rows),) * 2 + (open_trace(tmp_path / "t"),)
        )
        assert json.dumps(whole.to_dict()) == json.dumps(again.to_dict())
        assert whole.to_dict() == stored.to_dict()


@settings(max_examples=40)
@given(
    policy=st.sampled_from(["lru", "belady-bypass", "static", "static-hindsight"]),
    seed=st.integers(0, 99),
    batch=st.integers(1, 4),
    slots=st.integers(1, EXPERTS - 1),
    scope=SCOPES,
)
def test_these_never_miss_more_for_a_slot_more(
    policy: str, seed: int, batch: int, slots: int, scope: str
) -> None:
    trace = Trace.in_memory(shape(), rows_of(seed, batch))
    less, more = (only(trace, policy, count, scope).misses for count in (slots, slots + 1))
    assert more <= less
