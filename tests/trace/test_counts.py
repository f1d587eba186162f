"""Traces of counts answer what counts can answer and refuse the rest in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moeprof.errors import TraceError
from moeprof.model import MoEModel
from moeprof.trace import open_trace, validate_trace, write_counts


def test_counts_round_trip(tmp_path: Path, model: MoEModel) -> None:
    counts = np.random.default_rng(0).integers(0, 50, (4, 3, 16))
    write_counts(tmp_path / "t", model, counts)
    trace = open_trace(tmp_path / "t")
    assert trace.counts_only
    np.testing.assert_array_equal(trace.counts, counts)
    assert validate_trace(tmp_path / "t").problems == []
    for ask in (lambda: trace.experts(1), lambda: trace.step, lambda: trace.phase):
        with pytest.raises(TraceError, match="holds counts only; this needs the order of tokens"):
            ask()


def test_counts_of_another_model_are_refused(tmp_path: Path, model: MoEModel) -> None:
    with pytest.raises(TraceError, match="counts have shape"):
        write_counts(tmp_path / "t", model, np.zeros((1, 2, 16), np.int64))
    with pytest.raises(TraceError, match="negative"):
        write_counts(tmp_path / "t", model, np.full((1, 3, 16), -1))
