"""Contracts of engines equal slow models of the engines, event by event."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.cache import CONTRACTS, CacheReplay, replay_cache
from moeprof.cache.placements import placed, torch_permutation
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import Phase, TokenRows, Trace, synthesize_rows
from tests.cache.engines import free_token, llama_cpp, moe_infinity, vllm
from tests.conftest import small_config

EXPERTS, LAYERS = 7, 2


def served(seed: int, batch: int, prompts: bool = False) -> Trace:
    """Two requests one after the other, top-2 of 7 in two layers, `batch` tokens a step, 5 more in
    the first; with `prompts`, the first step of each is of prompt tokens.
    """
    model = MoEModel.from_config(small_config(layers=LAYERS + 1, experts=EXPERTS, top_k=2))
    rows, requests = synthesize_rows(model, 48, seed=seed, prefill=0.0)
    step = np.maximum(np.arange(48) - 5, 0) // batch
    half = step.max() // 2 + 1
    rows.step[:] = step
    rows.request[:] = requests[0].index + (step >= half)
    rows.phase[:] = np.where(prompts & np.isin(step, [0, half]), Phase.PREFILL, Phase.DECODE)
    second = requests[0].__class__(**{**vars(requests[0]), "index": requests[0].index + 1})
    return Trace.in_memory(model, TokenRows(**vars(rows)), [requests[0], second])


def by_step(trace: Trace, layer: int) -> list[list[list[int]]]:
    """[step][token][slot] of one layer."""
    ids = trace.experts(layer)
    return [ids[trace.step == step].tolist() for step in range(trace.step.max() + 1)]


def items_of(tokens: list[list[int]], layer: int) -> set[int]:
    """The distinct items of an event."""
    return {layer * EXPERTS + expert for token in tokens for expert in token}


def replayed(trace: Trace, contract: str, slots: int, **options: object) -> CacheReplay:
    """The one row of a contract's own policy and scope."""
    return replay_cache(trace, contract=contract, slots=slots, events=True, **options).rows[0]  # type: ignore[arg-type]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 99),
    batch=st.integers(1, 4),
    slots=st.integers(1, EXPERTS),
    inserts=st.integers(1, 3),
)
def test_llama_cpp_uploads_between_steps(seed: int, batch: int, slots: int, inserts: int) -> None:
    trace = served(seed, batch)
    row = replayed(trace, "llamacpp", slots, max_inserts=inserts)
    expected = [llama_cpp(by_step(trace, layer), slots, inserts) for layer in trace.layers]
    assert row.event_misses is not None and row.event_accesses is not None
    assert row.event_misses.tolist() == [[m for _, m in layer] for layer in expected]
    assert row.event_accesses.tolist() == [[h + m for h, m in layer] for layer in expected]


@settings(max_examples=60)
@given(seed=st.integers(0, 99), batch=st.integers(1, 9), slots=st.integers(2, EXPERTS))
def test_vllm_protects_a_call_and_splits_what_does_not_fit(
    seed: int, batch: int, slots: int
) -> None:
    trace = served(seed, batch)
    row = replayed(trace, "vllm", slots)
    expected = [vllm(by_step(trace, layer), slots) for layer in trace.layers]
    assert row.event_misses is not None and row.event_accesses is not None
    assert row.event_misses.tolist() == [[m for _, m in layer] for layer in expected]
    assert row.event_accesses.tolist() == [[h + m for h, m in layer] for layer in expected]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 99),
    batch=st.integers(1, 6),
    slots=st.integers(1, LAYERS * EXPERTS),
    prompts=st.booleans(),
)
def test_free_token_lends_slots_to_prompts(
    seed: int, batch: int, slots: int, prompts: bool
) -> None:
    trace = served(seed, batch, prompts)
    row = replayed(trace, "freetoken", slots)
    layers = [by_step(trace, layer) for layer in trace.layers]
    steps = [
        (
            bool((trace.phase[trace.step == i] == Phase.PREFILL).any()),
            [layer[i] for layer in layers],
        )
        for i in range(trace.step.max() + 1)
    ]
    assert row.event_misses is not None
    assert row.event_misses.T.ravel().tolist() == free_token(steps, slots, EXPERTS)


@settings(max_examples=60)
@given(seed=st.integers(0, 99), batch=st.integers(1, 6), slots=st.integers(1, LAYERS * EXPERTS))
def test_moe_infinity_forgets_visits_with_the_request(seed: int, batch: int, slots: int) -> None:
    trace = served(seed, batch)
    row = replayed(trace, "moe-infinity", slots)
    layers = [by_step(trace, layer) for layer in trace.layers]
    half = (trace.step.max()) // 2 + 1
    steps = [(i in (0, half), [layer[i] for layer in layers]) for i in range(trace.step.max() + 1)]
    assert row.event_misses is not None
    assert row.event_misses.T.ravel().tolist() == moe_infinity(steps, slots, EXPERTS)


@given(strategy=st.sampled_from(["uniform", "front-loading", "random"]), slots=st.integers(1, 14))
def test_ktransformers_moves_nothing(strategy: str, slots: int) -> None:
    trace = served(3, 2)
    row = replayed(trace, "ktransformers", slots, policy=strategy)
    mask = set(placed(strategy, LAYERS, EXPERTS, slots).tolist())
    assert len(mask) == slots and row.loads == 0
    expected = [
        [
            len({ordinal * EXPERTS + e for t in step for e in t} - mask)
            for step in by_step(trace, layer)
        ]
        for ordinal, layer in enumerate(trace.layers)
    ]
    assert row.event_misses is not None and row.event_misses.tolist() == expected


def test_ktransformers_masks_are_those_of_its_source() -> None:
    # test_kt_ep_wrapper.py of forks of kvcache-ai/sglang states these counts by layer
    uniform = placed("uniform", 4, 8, 8) // 8
    front = placed("front-loading", 4, 4, 5) // 4
    assert np.bincount(uniform, minlength=4).tolist() == [2, 2, 2, 2]
    assert np.bincount(front, minlength=4).tolist() == [4, 1, 0, 0]
    assert np.bincount(placed("uniform", 4, 8, 9) // 8, minlength=4).tolist() == [3, 2, 2, 2]


def test_frequency_counts_tokens_over_all_layers() -> None:
    trace = served(5, 3)
    row = replayed(trace, "ktransformers", 4, policy="frequency", fit=0.5)
    first = trace.step < int((trace.step.max() + 1) * 0.5)
    counts = np.stack(
        [
            np.bincount(trace.experts(layer)[first].ravel(), minlength=EXPERTS)
            for layer in trace.layers
        ]
    )
    mask = set(np.argsort(-counts.ravel(), kind="stable")[:4].tolist())
    later = [step for step in range(trace.step.max() + 1) if not first[trace.step == step].all()]
    expected = sum(
        len(items_of(by_step(trace, layer)[step], ordinal) - mask)
        for ordinal, layer in enumerate(trace.layers)
        for step in later
    )
    assert row.misses == expected


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_the_random_mask_is_torchs() -> None:
    import torch

    for n in (1, 14, 1000, 7296):
        generator = torch.Generator(device="cpu").manual_seed(42)
        assert torch_permutation(n, 42).tolist() == torch.randperm(n, generator=generator).tolist()


def test_every_contract_states_its_rules_and_knows_its_own_policy() -> None:
    trace = served(0, 1)
    for name, contract in CONTRACTS.items():
        assert contract.words and contract.larger_event
        assert contract.source or name in ("atomic", "sequential")
        fit = 0.5 if contract.default_policy in ("static", "frequency") else None
        row = replay_cache(trace, contract=name, slots=4, fit=fit).rows[0]
        assert row.contract == name and row.policy == contract.default_policy
        assert row.scope == (contract.scope or "layer")


def test_engines_refuse_what_they_cannot_do() -> None:
    trace = served(0, 1)
    for options, words in (
        ({"contract": "vllm", "slots": 1}, "a token needs 2 experts"),
        ({"contract": "llamacpp", "slots": 2, "policy": "arc"}, "not policy 'arc'"),
        ({"contract": "freetoken", "slots": 2, "scope": "layer"}, "has scope global"),
        ({"slots": 2, "policy": "uniform"}, "is not one of"),
        ({"slots": 2, "max_inserts": 0}, "1 at least"),
        ({"slots": 2, "policy": "mrs"}, "gate weights"),
    ):
        with pytest.raises(InputError, match=words):
            replay_cache(trace, **options)  # type: ignore[arg-type]
