"""Runs are what follows what in a request, whatever the order the engine wrote it in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moeprof.analysis import analyze_locality
from moeprof.analysis.runs import find_runs
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import Phase, TokenRows, Trace, open_trace
from moeprof.trace.formats import import_trace
from tests.recordings import shared_folder


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


def test_a_request_without_positions_runs_as_it_was_recorded() -> None:
    decode = [Phase.DECODE] * 6
    runs = find_runs(trace_of([4, 1, 4, -1, 1, 4], [-1, 0, -1, -1, 2, -1], decode))
    parts = np.split(runs.rows, runs.starts[1:-1])
    assert [part.tolist() for part in parts] == [[3], [1], [4], [0, 2, 5]]


def test_order_is_not_made_up_where_tokens_were_dropped() -> None:
    trace = trace_of([0, 0], [-1, -1], [Phase.DECODE] * 2)
    trace.manifest.dropped["queue full"] = 1
    assert find_runs(trace).starts.tolist() == [0, 1, 2]


def test_files_without_positions_repeat_as_is_known(tmp_path: Path) -> None:
    """The same figures as of the readers beside the tests, by the way a user takes."""
    folder = shared_folder()
    if folder is None:
        pytest.skip("no shared/traces beside the repository and no MOEPROF_SHARED")
    source, output = folder / "olmoe-1b-7b" / "trace_olmoe_299.jsonl", tmp_path / "t.moetrace"
    import_trace([source], output)
    assert analyze_locality(open_trace(output)).next_token_repeat == pytest.approx(0.435, abs=2e-3)
