"""The simulator against an engine that makes every step by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.projection.serving import (
    Admission,
    EnginePolicy,
    Request,
    Victim,
    simulate_serving,
)
from moeprof.projection.step.batch import Batch
from tests.projection.serving.stepping import serve_plainly


def seconds(batch: Batch) -> float:
    """Linear in each argument, so that the grid adds no error of its own."""
    decode = batch.decode * (1 + batch.draft_tokens)
    return (
        1e-2
        + 1e-3 * decode
        + 3e-5 * batch.decode * batch.context
        + 2e-4 * batch.prefill
        + 1e-6 * batch.prefill * batch.prefill_context
        + 1e-5 * batch.decode * batch.prefill
    )


requests = st.builds(
    lambda prompt, output, arrival, share: Request(
        prompt, output, arrival, min(int(prompt * share), prompt - 1)
    ),
    st.integers(1, 60),
    st.integers(1, 40),
    st.floats(0, 3),
    st.sampled_from([0.0, 0.0, 0.5, 1.0]),
)
policies = st.builds(
    EnginePolicy,
    name=st.just("any"),
    mixed=st.booleans(),
    chunked=st.booleans(),
    max_step_tokens=st.integers(120, 200) | st.integers(8, 100),
    max_sequences=st.integers(1, 8),
    block_tokens=st.integers(1, 7),
    admission=st.sampled_from(Admission),
    victim=st.sampled_from(Victim),
)


@settings(max_examples=60, deadline=None)
@given(
    wanted=st.lists(requests, min_size=1, max_size=20),
    policy=policies,
    concurrency=st.none() | st.integers(1, 12),
    kv_tokens=st.none() | st.integers(107, 260),
    dp=st.integers(1, 3),
    speculation=st.sampled_from([(1.0, 0), (1.0, 2), (1.5, 1), (2.75, 3)]),
    delay_s=st.sampled_from([0.0, 0.015, 0.4]),
)
def test_every_time_agrees(
    wanted: list[Request],
    policy: EnginePolicy,
    concurrency: int | None,
    kv_tokens: int | None,
    dp: int,
    speculation: tuple[float, int],
    delay_s: float,
) -> None:
    if not policy.chunked:  # what simulate_serving does for such engines
        policy = policy.with_limits(max_step_tokens=200)
    advance, drafts = speculation
    rows, steps, preempted = serve_plainly(
        seconds, wanted, policy, concurrency, kv_tokens, dp, advance, drafts, delay_s
    )
    found = simulate_serving(
        seconds,
        wanted,
        engine=policy,
        concurrency=concurrency,
        kv_tokens=kv_tokens,
        dp=dp,
        accepted_tokens=advance,
        draft_tokens=drafts,
        delay_s=delay_s,
    )
    assert found.steps == steps
    assert found.preemptions == preempted
    rows.sort(key=lambda row: row["arrival"])
    assert found.arrival_s == pytest.approx([row["arrival"] for row in rows], rel=1e-9)
    assert np.sort(found.finish_s) == pytest.approx(sorted(r["end"] for r in rows), rel=1e-9)
    if not concurrency:  # else ties of arrivals leave the order open
        assert found.first_token_s == pytest.approx([row["first"] for row in rows], rel=1e-9)
    gaps = np.concatenate([row["gaps"] for row in rows])
    if len(gaps):
        assert found.itl_ms["mean"] == pytest.approx(gaps.mean() * 1e3, rel=1e-9)
        highest = np.quantile(gaps, 0.99, method="inverted_cdf") * 1e3
        assert found.itl_ms["p99"] == pytest.approx(highest, rel=1e-9)
    else:
        assert found.itl_ms["mean"] is None
