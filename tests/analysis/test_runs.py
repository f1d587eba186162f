"""Runs are what follows what in a request, whatever the order the engine wrote it in."""

from __future__ import annotations

import numpy as np
import pytest

from moeprof.analysis.runs import find_runs
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import Phase, TokenRows, Trace


def trace_of(request: list[int], position: list[int], phase: list[int]) -> Trace:
    tokens = len(request)
    rows = TokenRows(
        step=np.arange(tokens),
        request=np.array(request, np.int32),
        position=np.array(position, np.int32),
        phase=np.array(phase, np.int8),
        experts=np.zeros((tokens, 1, 1), np.uint8),
    )
    return Trace.in_memory(MoEModel("tiny", "tiny", 1, 1, (0,), 4, 1), rows)


def test_runs_by_phase_end_at_requests_and_gaps() -> None:
    prompt, decode = Phase.PREFILL, Phase.DECODE
    trace = trace_of(
        request=[7, 3, 3, 7, 3, 7, 3],
        position=[1, 2, 0, 0, 5, 2, 1],
        phase=[prompt, decode, prompt, prompt, decode, decode, decode],
    )
    runs = find_runs(trace)
    assert runs.rows.tolist() == [6, 1, 4, 5]
    assert runs.starts.tolist() == [0, 2, 3, 4]  # 1, 2 | 5 of request 3 | request 7
    assert runs.request.tolist() == [0, 0, 0, 1]
    assert runs.requests == 2
    prompts = find_runs(trace, Phase.PREFILL)
    assert prompts.rows.tolist() == [2, 3, 0]
    assert prompts.starts.tolist() == [0, 1, 3]


def test_tokens_of_unknown_phase_count_as_decode() -> None:
    trace = trace_of([0, 0], [0, 1], [Phase.UNKNOWN, Phase.UNKNOWN])
    assert find_runs(trace).rows.tolist() == [0, 1]
    with pytest.raises(InputError, match="no prefill tokens"):
        find_runs(trace, Phase.PREFILL)
