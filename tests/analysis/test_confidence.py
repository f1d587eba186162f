"""Margins and gate entropy: by hand, by layer and by domain."""

from __future__ import annotations

import numpy as np
import pytest

from moeprof.analysis.specialization import analyze_confidence, analyze_routing_factors
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import Request, TokenRows, Trace

MODEL = MoEModel("c", "c", 1, 2, (0, 1), 4, 2)


def trace_of(requests: int = 10, tokens: int = 20) -> Trace:
    """Even requests tie in half of layer 0's tokens; weights are (3/4, 1/4), odd ones' even."""
    count = requests * tokens
    request = np.repeat(np.arange(requests, dtype=np.int32), tokens)
    margins = np.full((count, 2), 0.5, np.float16)
    margins[(request % 2 == 0) & (np.arange(count) % 2 == 0), 0] = 0.001
    margins[0, 1] = np.nan
    weights = np.tile(np.array([0.75, 0.25], np.float16), (count, 2, 1))
    weights[request % 2 == 1] = 1.5  # not scaled to a sum of 1
    rows = TokenRows(
        step=np.arange(count),
        request=request,
        position=np.tile(np.arange(tokens, dtype=np.int32), requests),
        phase=None,
        experts=np.tile(np.array([0, 1], np.uint8), (count, 2, 1)),
        weights=weights,
        margins=margins,
    )
    return Trace.in_memory(MODEL, rows, [Request(i, "ab"[i % 2]) for i in range(requests)])


def test_ties_and_entropy_are_those_put_in() -> None:
    result = analyze_confidence(trace_of())
    low = 0.75 * np.log2(4 / 3) + 0.25 * 2
    assert result.near_ties == pytest.approx(50 / 399)  # of the margins that are known
    assert result.near_ties_by_domain == pytest.approx({"a": 50 / 199, "b": 0.0})
    assert [one.near_ties for one in result.layers] == pytest.approx([50 / 200, 0])
    assert result.gate_entropy == pytest.approx((low + 1) / 2)
    assert result.gate_entropy_by_domain == pytest.approx({"a": low, "b": 1.0})
    assert result.most_entropy == 1.0
    assert result.layers[0].top_weight == pytest.approx(5 / 8)
    assert result.layers[0].margin is not None
    assert result.layers[0].margin["p50"] == 0.5
    assert result.near_ties_interval is not None
    assert result.near_ties_interval.low < 50 / 399 < result.near_ties_interval.high


def test_what_was_not_recorded_is_refused_or_left_out(trace: Trace) -> None:
    with pytest.raises(InputError, match="neither margins nor gate weights were recorded"):
        analyze_confidence(trace)
    factors = analyze_routing_factors(trace)
    assert factors.confidence is None
    assert set(factors.missing) >= {"vocabulary", "confidence"}
    assert "record with token_ids=True" in factors.missing["vocabulary"]
