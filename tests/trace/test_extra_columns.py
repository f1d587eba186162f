"""Margins and the next layer's choices: they come round, are checked, and trouble no one else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.errors import TraceError
from moeprof.model import MoEModel
from moeprof.report.text.trace import trace_info_text
from moeprof.trace import (
    TokenRows,
    Trace,
    TraceWriter,
    describe_trace,
    open_trace,
    synthesize_rows,
    validate_trace,
)
from moeprof.trace.columns import concat_rows
from tests.conftest import small_config
from tests.trace.test_limits import with_extras
from tests.trace.test_store import assert_same, part


def assert_same_extras(trace: Trace, rows: TokenRows) -> None:
    assert rows.margins is not None
    assert rows.next_experts is not None and rows.next_weights is not None
    for ordinal, layer in enumerate(trace.layers):
        mask = np.ones(len(rows), bool) if rows.recorded is None else rows.recorded[:, ordinal]
        np.testing.assert_array_equal(trace.margins(layer), rows.margins[mask, ordinal])
        if layer != trace.layers[-1]:
            ids, weights = trace.next_experts(layer), trace.next_weights(layer)
            np.testing.assert_array_equal(ids, rows.next_experts[mask, ordinal])
            np.testing.assert_array_equal(weights, rows.next_weights[mask, ordinal])


def write(path: Path, model: MoEModel, *parts: TokenRows) -> Path:
    with TraceWriter(path, model, margins=True, next_layer=True) as out:
        for rows in parts:
            out.write(rows)
            out.flush()
    return path


@settings(max_examples=40)  # each writes files
@given(
    tokens=st.integers(1, 300),
    layers=st.integers(2, 5),
    top_k=st.integers(1, 4),
    cut=st.integers(0, 300),
    nulls=st.booleans(),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: int,
    layers: int,
    top_k: int,
    cut: int,
    nulls: bool,
) -> None:
    model = MoEModel.from_config(small_config(layers=layers, top_k=top_k))
    rows, _ = synthesize_rows(model, tokens)
    seen = np.random.default_rng(cut).random(rows.experts.shape[:2]) < 0.6 if nulls else None
    rows = with_extras(rows, seen)
    folder = tmp_path_factory.mktemp("t")
    parts = part(rows, 0, cut), part(rows, cut, tokens)
    trace = open_trace(write(folder / "a", model, *parts))
    assert_same(trace, rows)
    assert_same_extras(trace, rows)
    assert validate_trace(folder / "a").problems == []
    again = concat_rows(list(trace.rows(batch_rows=37)))
    assert_same_extras(open_trace(write(folder / "b", model, again)), rows)
    assert_same_extras(Trace.in_memory(model, rows), rows)


def test_they_are_said_to_be_there(tmp_path: Path, model: MoEModel) -> None:
    rows = with_extras(synthesize_rows(model, 20)[0])
    info = describe_trace(open_trace(write(tmp_path / "t", model, rows)))
    assert info.margins and info.next_layer
    assert "margins, the next layer's choices" in " ".join(trace_info_text(info).split())


def test_without_them_each_accessor_says_how_to_get_them(trace: Trace) -> None:
    with pytest.raises(TraceError, match=r"margins were not recorded; record with margins=True$"):
        trace.margins(1)
    for read in (trace.next_experts, trace.next_weights):
        with pytest.raises(TraceError, match=r"not recorded; record with next_layer=True$"):
            read(1)


def test_nothing_is_next_to_the_last_layer(model: MoEModel) -> None:
    trace = Trace.in_memory(model, with_extras(synthesize_rows(model, 20)[0]))
    with pytest.raises(TraceError, match="layer 3 is the last that was recorded"):
        trace.next_experts(3)
    with pytest.raises(TraceError, match="layer 0 was not recorded"):
        trace.margins(0)


def test_a_reader_that_knows_none_of_it_reads_the_rest(tmp_path: Path, model: MoEModel) -> None:
    """A manifest without the flags is what an older moeprof sees: it passes over the columns."""
    rows = with_extras(synthesize_rows(model, 50)[0])
    path = write(tmp_path / "t", model, rows)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["margins"], manifest["next_layer"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert validate_trace(path).problems == []
    assert_same(open_trace(path), rows)


def test_wrong_values_are_refused_or_found(tmp_path: Path, model: MoEModel) -> None:
    rows = with_extras(synthesize_rows(model, 50)[0])
    assert rows.next_experts is not None and rows.margins is not None
    with pytest.raises(TraceError, match="must be given together"):
        TokenRows(**{**vars(rows), "next_weights": None})
    with pytest.raises(TraceError, match=r"next_experts has shape .* expected \(50, 2, 3\)"):
        TokenRows(**{**vars(rows), "next_experts": rows.experts})
    out = TraceWriter(tmp_path / "plain", model)
    with pytest.raises(TraceError, match="must not have margins"):
        out.write(rows)
    out.close()
    foreign = rows.next_experts.copy()
    foreign[7, 1, 2] = 16
    with TraceWriter(tmp_path / "t", model, margins=True, next_layer=True) as out:
        with pytest.raises(TraceError, match="layer 2: next_experts id 16 of row 7 is not one of"):
            out.write(TokenRows(**{**vars(rows), "next_experts": foreign}))
        with pytest.raises(TraceError, match="must have margins"):
            out.write(TokenRows(**{**vars(rows), "margins": None}))
        rows.next_experts[9, 0] = [1, 1, 2]
        rows.margins[5, 2] = -1
        out.write(rows)
    assert validate_trace(tmp_path / "t").problems == [
        "next experts of layer 1, row 9: an id stands twice among the experts of one token",
        "layer 3, row 5: a margin is below 0",
    ]


def test_a_single_layer_has_none_behind_it(tmp_path: Path) -> None:
    model = MoEModel.from_config(small_config(layers=2))
    rows = with_extras(synthesize_rows(model, 10)[0])
    trace = open_trace(write(tmp_path / "t", model, rows))
    assert_same_extras(trace, concat_rows(list(trace.rows())))
