"""Position and phase: seen where they are put in, and not mistaken for what a request is about."""

from __future__ import annotations

import numpy as np
import pytest

from moeprof.analysis.specialization import analyze_phase, analyze_position
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import Phase, TokenRows, Trace

MODEL = MoEModel("drawn", "drawn", 1, 2, (0, 1), 8, 1)


def trace_of(seed: int, *, late: float = 0.0, requests: int = 12, tokens: int = 64) -> Trace:
    """Requests with strong tastes of their own; a share `late` of later tokens choose expert 7."""
    rng = np.random.default_rng(seed)
    taste = rng.dirichlet(np.full(8, 0.5), (requests, 2))
    ids = np.stack([[rng.choice(8, tokens, p=p) for p in of] for of in taste])
    moved = rng.random(ids.shape) < late
    moved[..., : tokens // 2] = False
    ids[moved] = 7
    position = np.tile(np.arange(tokens, dtype=np.int32), requests)
    rows = TokenRows(
        step=np.arange(requests * tokens),
        request=np.repeat(np.arange(requests, dtype=np.int32), tokens),
        position=position,
        phase=np.where(position < tokens // 2, Phase.PREFILL, Phase.DECODE).astype(np.int8),
        experts=ids.transpose(0, 2, 1).reshape(-1, 2, 1).astype(np.uint8),
    )
    return Trace.in_memory(MODEL, rows)


@pytest.mark.parametrize("analyze", [analyze_position, analyze_phase])
def test_what_a_request_is_about_is_not_position(analyze) -> None:  # type: ignore[no-untyped-def]
    found = [analyze(trace_of(seed)) for seed in range(30)]
    p = np.array([one.p_value for one in found])
    assert 0.3 < p.mean() < 0.7
    assert (p <= 0.1).mean() < 0.3
    assert abs(np.mean([one.excess for one in found])) < 0.004


@pytest.mark.parametrize("analyze", [analyze_position, analyze_phase])
def test_what_was_put_in_is_found(analyze) -> None:  # type: ignore[no-untyped-def]
    found = analyze(trace_of(0, late=0.5))
    assert found.p_value < 0.02
    assert found.interval.low > 0
    assert all(layer.q_value < 0.05 for layer in found.layers)


def test_phase_that_shares_no_expert_differs_by_one_bit() -> None:
    trace = trace_of(0)
    ids = np.where(trace.phase == Phase.PREFILL, 1, 2).astype(np.uint8)
    rows = TokenRows(
        step=trace.step,
        request=trace.request,
        position=trace.position,
        phase=trace.phase,
        experts=np.repeat(ids[:, None, None], 2, axis=1),
    )
    assert analyze_phase(Trace.in_memory(MODEL, rows)).divergence == pytest.approx(1.0)


def test_prompts_alone_have_no_phases_to_compare() -> None:
    trace = trace_of(0, tokens=12)
    with pytest.raises(InputError, match=r"0 requests have 8 tokens of each \(prefill, decode\)"):
        analyze_phase(trace)
