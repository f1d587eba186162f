"""Traces of counts answer what counts can answer and refuse the rest in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from moeprof.errors import TraceError
from moeprof.model import MoEModel
from moeprof.trace import open_trace, validate_trace, write_counts
from tests.trace.test_damage import rewrite


def test_counts_round_trip(tmp_path: Path, model: MoEModel) -> None:
    counts = np.random.default_rng(0).integers(0, 50, (4, 3, 16))
    write_counts(tmp_path / "t", model, counts)
    trace = open_trace(tmp_path / "t")
    assert trace.counts_only
    np.testing.assert_array_equal(trace.counts, counts)
    assert validate_trace(tmp_path / "t").problems == []
    for ask in (lambda: trace.experts(1), lambda: trace.step, lambda: next(trace.rows())):
        with pytest.raises(TraceError, match="holds counts only; this needs the order of tokens"):
            ask()


def test_counts_of_another_model_are_refused(tmp_path: Path, model: MoEModel) -> None:
    with pytest.raises(TraceError, match="counts have shape"):
        write_counts(tmp_path / "t", model, np.zeros((1, 2, 16), np.int64))
    with pytest.raises(TraceError, match="negative"):
        write_counts(tmp_path / "t", model, np.full((1, 3, 16), -1))


@pytest.mark.parametrize("windows", [0, 2])
def test_counts_of_nothing_are_counts(tmp_path: Path, model: MoEModel, windows: int) -> None:
    write_counts(tmp_path / "t", model, np.zeros((windows, 3, 16), np.int64))
    trace = open_trace(tmp_path / "t")
    assert trace.counts_only
    assert trace.counts.shape == (0, 3, 16)
    assert validate_trace(tmp_path / "t").problems == []


@pytest.mark.parametrize(
    ("column", "value"),
    [("layer", 0), ("layer", 99), ("expert", 16), ("expert", -1), ("window", -1), ("tokens", -5)],
)
def test_rows_without_a_place_are_left_out_and_counted(
    tmp_path: Path, model: MoEModel, column: str, value: int
) -> None:
    counts = np.ones((2, 3, 16), np.int64)
    write_counts(tmp_path / "t", model, counts)

    def misplace(table: pa.Table) -> pa.Table:
        values = table[column].to_numpy().copy()
        values[5] = value
        place = table.schema.get_field_index(column)
        array = pa.array(values, table.schema.field(place).type)
        return table.set_column(place, table.schema.field(place), array)

    rewrite(tmp_path / "t", "counts.arrows", misplace)
    counts[0, 0, 5] = 0
    trace = open_trace(tmp_path / "t")
    np.testing.assert_array_equal(trace.counts, counts)
    assert trace.problems[0].startswith("counts.arrows: 1 rows name a layer or expert that is not")


def test_opening_makes_no_array_of_all_windows(tmp_path: Path, model: MoEModel) -> None:
    write_counts(tmp_path / "t", model, np.ones((1, 3, 16), np.int64))

    def far(table: pa.Table) -> pa.Table:
        windows = pa.array(np.full(len(table), 2**60), pa.int64())
        return table.set_column(0, table.schema.field(0), windows)

    rewrite(tmp_path / "t", "counts.arrows", far)
    trace = open_trace(tmp_path / "t")
    assert trace.counts_only
    with pytest.raises(TraceError, match="do not fit in memory"):
        _ = trace.counts
