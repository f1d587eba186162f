from __future__ import annotations

import numpy as np
import pytest

from moeprof.errors import InputError
from moeprof.projection.serving import workload, workload_names
from moeprof.quantity import Provenance

PARTS = ("input_tokens", "cached_share", "output_tokens")


def test_the_workloads_that_a_planner_asks_for_exist() -> None:
    assert {"chat", "rag", "coding-agent", "long-context"} <= set(workload_names())
    with pytest.raises(InputError, match="no workload 'x'; there are chat"):
        workload("x")


@pytest.mark.parametrize("name", workload_names())
def test_every_distribution_ascends_from_0_to_1_and_says_where_it_comes_from(name: str) -> None:
    for part in (getattr(workload(name), each) for each in PARTS):
        assert (part.levels[0], part.levels[-1]) == (0, 1)
        assert len(part.levels) == len(part.values)
        assert (np.diff(part.levels) > 0).all() and (np.diff(part.values) >= 0).all()
        assert part.source.startswith("as ") or len(part.source) > 40
        assert isinstance(part.provenance, Provenance)
    assert workload(name).cached_share.values[-1] <= 1


@pytest.mark.parametrize("name", workload_names())
def test_draws_keep_the_quantiles_and_means_of_their_source(name: str) -> None:
    stated = workload(name)
    drawn = stated.requests(40_000, seed=5)
    inputs = np.array([r.input_len for r in drawn])
    outputs = np.array([r.output_len for r in drawn])
    for tokens, part in ((inputs, stated.input_tokens), (outputs, stated.output_tokens)):
        for level, value in zip(part.levels, part.values, strict=True):
            assert (tokens < value).mean() - 0.01 <= level <= (tokens <= value).mean() + 0.01
        if part.mean is not None:
            assert tokens.mean() == pytest.approx(part.mean, rel=0.06)
    cached = np.array([r.cached_len for r in drawn])
    if stated.cached_share.mean is not None:
        assert (cached / inputs).mean() == pytest.approx(stated.cached_share.mean, abs=0.02)


def test_document_questions_reuse_the_share_of_their_source() -> None:
    drawn = workload("rag-documents").requests(20_000)
    share = sum(r.cached_len for r in drawn) / sum(r.input_len for r in drawn)
    assert share == pytest.approx(0.654, abs=0.02)


def test_a_context_limit_cuts_prompts_and_a_cold_cache_holds_nothing() -> None:
    drawn = workload("long-context").requests(300, longest=200_000, cached=False)
    assert max(r.input_len + r.output_len for r in drawn) == 200_000
    assert not any(r.cached_len for r in workload("rag").requests(50, cached=False))
    tiny = workload("chat").requests(50, longest=2)
    assert {(r.input_len, r.output_len) for r in tiny} == {(1, 1)}
    for count, longest in ((0, None), (1, 1)):
        with pytest.raises(InputError, match="there must be some"):
            workload("chat").requests(count, longest=longest)


def test_the_same_seed_draws_the_same() -> None:
    chat = workload("chat")
    assert chat.requests(20, seed=1) == chat.requests(20, seed=1) != chat.requests(20, seed=2)
