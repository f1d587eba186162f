"""A part of a trace, a redacted one, a migrated one: what stays is as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import (
    Request,
    TraceWriter,
    migrate_trace,
    open_trace,
    redact_trace,
    slice_trace,
    synthesize_rows,
    validate_trace,
    write_counts,
)
from tests.trace.test_limits import with_extras

Saved = Callable[..., Path]


@pytest.fixture
def full(tmp_path: Path, model: MoEModel) -> Path:
    """A trace with every optional column, telemetry aside."""
    rows, requests = synthesize_rows(model, 200, requests=4)
    path = tmp_path / "full.moetrace"
    with TraceWriter(
        path, model, weights=True, token_ids=True, margins=True, next_layer=True,
        engine="vllm", rank_ordered=True, clock_base=7.0,
    ) as writer:  # fmt: skip
        rng = np.random.default_rng(1)
        gates = rng.random(rows.experts.shape).astype(np.float16)
        ids = rng.integers(0, 99, 200).astype(np.int32)
        writer.write(replace(with_extras(rows), weights=gates, token_id=ids))
        for request in requests:
            writer.put_request(request)
        writer.drop(3, "size limit")
    return path


@pytest.mark.parametrize(
    ("conditions", "mask"),
    [
        ({"requests": [1, 3]}, lambda t: np.isin(t.request, [1, 3])),
        ({"labels": ["a"]}, lambda t: t.label == "a"),
        ({"labels": ["a"], "requests": [0, 1]}, lambda t: t.request == 0),
        ({"phase": "decode"}, lambda t: t.phase == 1),
        ({"steps": (5, 9)}, lambda t: (t.step >= 5) & (t.step <= 9)),
        ({}, lambda t: t.step >= 0),
    ],
)
def test_a_slice_holds_the_rows_that_meet_every_condition(
    tmp_path: Path, full: Path, conditions: dict[str, object], mask: Callable[..., np.ndarray]
) -> None:
    source = open_trace(full)
    wanted = mask(source)
    result = slice_trace(full, tmp_path / "s", **conditions)  # type: ignore[arg-type]
    cut = open_trace(tmp_path / "s")
    assert result.tokens == cut.tokens == wanted.sum()
    assert result.left_out == source.tokens - cut.tokens
    for name in ("step", "request", "position", "phase", "token_id"):
        assert (getattr(cut, name) == getattr(source, name)[wanted]).all()
    for layer in source.layers:
        assert (cut.experts(layer) == source.experts(layer)[wanted]).all()
        assert (cut.weights(layer) == source.weights(layer)[wanted]).all()
    assert {r.index for r in cut.requests} == set(cut.request.tolist())
    assert cut.manifest.engine == "vllm" and cut.dropped == {"size limit": 3}
    assert validate_trace(tmp_path / "s").problems == []


def test_chosen_layers_leave_the_next_layers_choices_out(tmp_path: Path, full: Path) -> None:
    slice_trace(full, tmp_path / "s", layers=[3, 1])
    cut, source = open_trace(tmp_path / "s"), open_trace(full)
    assert cut.layers == (1, 3) and not cut.manifest.next_layer and cut.manifest.margins
    assert (cut.experts(3) == source.experts(3)).all()
    assert np.array_equal(cut.margins(3), source.margins(3), equal_nan=True)


def test_redacted_is_without_token_ids_and_labels(tmp_path: Path, full: Path) -> None:
    redact_trace(full, tmp_path / "r")
    trace = open_trace(tmp_path / "r")
    assert not trace.manifest.token_ids and trace.labels == ()
    assert len(trace.requests) == 4 and trace.requests[0].prompt_tokens is not None
    content = b"".join(f.read_bytes() for f in (tmp_path / "r").rglob("*") if f.is_file())
    assert b"token_id" not in content.replace(b'"token_ids"', b"")
    assert (trace.experts(2) == open_trace(full).experts(2)).all()


def test_migrated_is_the_same_and_sound(tmp_path: Path, full: Path) -> None:
    assert migrate_trace(full, tmp_path / "m").tokens == 200
    trace, source = open_trace(tmp_path / "m"), open_trace(full)
    assert trace.requests == source.requests and trace.manifest.next_layer
    assert (trace.next_experts(1) == source.next_experts(1)).all()
    assert validate_trace(tmp_path / "m").problems == []


def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path, full: Path) -> None:
    for conditions, message in (
        ({"layers": [0]}, "layer '0' is not in the trace"),
        ({"labels": ["z"]}, "label 'z' is not in the trace"),
        ({"requests": [99]}, "no token meets"),
        ({"phase": "warm"}, "phase 'warm'"),
    ):
        with pytest.raises(InputError, match=message):
            slice_trace(full, tmp_path / "s", **conditions)  # type: ignore[arg-type]
        assert not (tmp_path / "s").exists()
    with pytest.raises(InputError, match="the trace itself"):
        redact_trace(full, full, force=True)
    with pytest.raises(InputError, match="--force"):
        (tmp_path / "there").mkdir()
        redact_trace(full, tmp_path / "there")


def test_counts_can_be_redacted_and_not_sliced(tmp_path: Path, model: MoEModel) -> None:
    write_counts(tmp_path / "c", model, np.ones((2, 3, 16), np.int64))
    redact_trace(tmp_path / "c", tmp_path / "r")
    assert (open_trace(tmp_path / "r").counts == 1).all()
    with pytest.raises(InputError, match="counts only"):
        slice_trace(tmp_path / "c", tmp_path / "s", phase="decode")


def test_a_request_that_is_not_described_stays(tmp_path: Path, model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 60, requests=2)
    with TraceWriter(tmp_path / "t", model) as writer:
        writer.write(rows)
        writer.put_request(Request(1, label="b"))
    assert slice_trace(tmp_path / "t", tmp_path / "s", requests=[0]).requests == 0
    assert open_trace(tmp_path / "s").tokens == 30
