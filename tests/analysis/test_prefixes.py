"""Shared beginnings are found with token ids and without, through rounding, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from moeprof.analysis import analyze_specialization
from moeprof.analysis.prompt_locality import analyze_prompts
from moeprof.analysis.repeated_beginnings import find_repeated
from moeprof.analysis.specialization import find_shared_prefixes
from moeprof.model import MoEModel
from moeprof.trace import Phase, Request, TokenRows, Trace, open_trace, synthesize_rows
from tests.recordings import SHIPPED, recording

LAYERS, EXPERTS, TOP_K = 8, 16, 2


def router(tokens: NDArray[np.int64], layer: int) -> NDArray[np.int64]:
    """[tokens, k] experts that depend on all tokens so far, as those of a causal model."""
    chosen = []
    for place in range(len(tokens)):
        drawn = Random(hash((layer, *tokens[: place + 1].tolist())))
        chosen.append(drawn.sample(range(EXPERTS), TOP_K))
    return np.array(chosen)


def template_trace(*, ids: bool, noise: float = 0.0, shared: int = 20) -> Trace:
    """Six requests of 40 tokens: 0, 1 and 3 begin alike, 4 and 5 only for four tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 1000, (6, 40))
    tokens[[1, 3], :shared] = tokens[0, :shared]
    tokens[5, :4] = tokens[4, :4]
    experts = np.stack(
        [np.stack([router(one, layer) for layer in range(LAYERS)], axis=1) for one in tokens]
    )
    tipped = rng.random(experts.shape[:3]) < noise
    experts[tipped] = (experts[tipped] + 1) % EXPERTS
    order = rng.permutation(240)  # rows of requests stand in one another's way
    order = order[np.argsort(order % 40, kind="stable")]
    model = MoEModel("t", "t", 1, LAYERS, tuple(range(LAYERS)), EXPERTS, TOP_K)
    rows = TokenRows(
        step=np.arange(240),
        request=(order // 40).astype(np.int32),
        position=(order % 40).astype(np.int32),
        phase=None,
        experts=experts.reshape(240, LAYERS, TOP_K)[order].astype(np.uint8),
        token_id=tokens.reshape(-1)[order].astype(np.int32) if ids else None,
    )
    return Trace.in_memory(model, rows, [Request(i, "aab"[i % 3]) for i in range(6)])


@pytest.mark.parametrize(("ids", "noise"), [(True, 0.0), (True, 0.5), (False, 0.0), (False, 0.03)])
def test_a_template_is_found(ids: bool, noise: float) -> None:
    trace = template_trace(ids=ids, noise=noise)
    found = find_shared_prefixes(trace)
    assert found.seen_by == ("token ids" if ids else "routing")
    assert (found.requests, found.shared_tokens) == (3, 60)
    assert found.token_share == 60 / 240
    assert [(one.tokens, one.requests, one.labels) for one in found.prefixes] == [(20, 3, ["a"])]
    # Requests 0, 1 and 3 are of one label: the first of them keeps its tokens.
    expected = np.isin(trace.request, [1, 3]) & (trace.position < 20)
    np.testing.assert_array_equal(found.repeated, expected)


def test_each_label_keeps_one_copy() -> None:
    trace = template_trace(ids=True)
    trace.requests = tuple(replace(one, label="aabc"[one.index % 4]) for one in trace.requests)
    repeated = find_shared_prefixes(trace).repeated
    np.testing.assert_array_equal(
        repeated, (trace.request == 1) & (trace.position < 20)
    )  # 0 keeps that of "a", 3 that of "c"


def test_a_few_tokens_alike_are_no_template() -> None:
    found = find_shared_prefixes(template_trace(ids=True, shared=7))
    assert (found.requests, found.repeated_tokens, found.prefixes) == (0, 0, [])


def test_requests_without_positions_are_not_compared() -> None:
    rows = TokenRows(
        step=np.arange(4),
        request=np.array([0, 1, 0, 1], np.int32),
        position=np.full(4, -1, np.int32),
        phase=None,
        experts=np.zeros((4, 1, 1), np.uint8),
    )
    assert (
        find_shared_prefixes(Trace.in_memory(MoEModel("t", "t", 1, 1, (0,), 4, 1), rows)).requests
        == 0
    )


def test_whole_requests_alike_are_one() -> None:
    trace = template_trace(ids=False, shared=40)
    found = find_shared_prefixes(trace)
    assert (found.requests, found.shared_tokens, found.repeated_tokens) == (3, 120, 80)


def test_copies_of_a_template_are_not_evidence() -> None:
    """Domains that differ in nothing but a template each look specialized until it counts once."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 50, (24, 40))
    for label in range(2):
        tokens[label::2, :30] = tokens[label, :30]
    ids = [np.stack([router(one, layer) for layer in range(LAYERS)], axis=1) for one in tokens]
    model = MoEModel("t", "t", 1, LAYERS, tuple(range(LAYERS)), EXPERTS, TOP_K)
    rows = TokenRows(
        step=np.arange(960),
        request=np.repeat(np.arange(24, dtype=np.int32), 40),
        position=np.tile(np.arange(40, dtype=np.int32), 24),
        phase=None,
        experts=np.concatenate(ids).astype(np.uint8),
    )
    trace = Trace.in_memory(model, rows, [Request(i, "ab"[i % 2]) for i in range(24)])
    once = analyze_specialization(trace, shuffles=99)
    every = analyze_specialization(trace, prefixes="all", shuffles=99)
    assert every.p_value == 0.01
    assert once.p_value > 0.05
    assert once.by_prefixes["all"].specialization == every.specialization
    assert every.by_prefixes["once"].specialization == once.specialization
    assert every.specialization > 2 * once.specialization


def test_recordings_with_and_without_templates() -> None:
    assert find_shared_prefixes(recording("gpt-oss-20b")).requests == 0
    shipped = find_shared_prefixes(open_trace(SHIPPED))
    assert shipped.requests == 38  # files that begin with one licence, of javascript mostly
    assert shipped.token_share == pytest.approx(0.02, abs=0.001)


def test_locality_is_told_with_copies_and_without(model: MoEModel) -> None:
    """Half of the requests are copies: without them the figures are those of the other half."""
    rows, _ = synthesize_rows(model, 240, requests=6, skew=1.0)
    order = np.lexsort((rows.position, rows.request))
    size = len(order) // 6
    experts = rows.experts[order].reshape(6, size, *rows.experts.shape[1:])
    experts[3:] = experts[:3]
    made = TokenRows(
        step=np.arange(len(order)),
        request=np.repeat(np.arange(6, dtype=np.int32), size),
        position=np.tile(np.arange(size, dtype=np.int32), 6),
        phase=np.full(len(order), Phase.PREFILL, np.int8),
        experts=experts.reshape(rows.experts.shape),
    )
    given = {name: values for name, values in vars(made).items() if values is not None}
    half = TokenRows(**{name: values[: 3 * size] for name, values in given.items()})
    repeated = find_repeated(Trace.in_memory(model, made))
    assert (repeated.prefill_share, repeated.decode_share, repeated.decode) == (0.5, 0, None)
    assert repeated.prefill == analyze_prompts(Trace.in_memory(model, half))
    assert find_repeated(Trace.in_memory(model, half)).prefill is None
