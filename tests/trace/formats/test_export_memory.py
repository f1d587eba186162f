"""Exports that gather and look ahead: the same bytes piece by piece, in bounded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.model import MoEModel
from moeprof.trace import Request, TokenRows, Trace, TraceWriter, open_trace
from moeprof.trace.formats import export_oracle, export_r3, export_trace
from tests.conftest import save, small_config
from tests.trace.formats.files import imported

MIB = 1 << 20


def interleaved(tokens: int, model: MoEModel, seed: int = 0) -> tuple[TokenRows, list[Request]]:
    """Requests that run together, steps of 1 to 9 tokens, some layers not recorded."""
    rng = np.random.default_rng(seed)
    layers = len(model.moe_layers)
    request = rng.integers(0, 5, tokens).astype(np.int32)
    position = np.zeros(tokens, np.int32)
    for index in range(5):
        position[request == index] = np.arange((request == index).sum())
    start = rng.integers(0, model.experts, (tokens, layers, 1))
    rows = TokenRows(
        step=np.sort(rng.integers(3, 3 + max(tokens // 4, 1), tokens)),
        request=request,
        position=position,
        phase=None,
        experts=((start + np.arange(model.top_k)) % model.experts).astype(np.uint8),
        recorded=rng.random((tokens, layers)) < 0.9,
    )
    return rows, [Request(n, prompt_tokens=1) for n in range(5)]


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 60), piece=st.integers(1, 40), seed=st.integers(0, 99))
@pytest.mark.parametrize("format", ["oracle-general", "r3"])
def test_pieces_do_not_show(
    tmp_path_factory: pytest.TempPathFactory, format: str, tokens: int, piece: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    model = MoEModel.from_config(small_config())
    trace = Trace.in_memory(model, *interleaved(tokens, model, seed))
    export_trace(trace, folder / "whole", format)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_oracle, "_BATCH_ROWS", piece)
        patch.setattr(export_oracle, "_CHUNK", piece)
        patch.setattr(export_r3, "_GROUP_BYTES", piece * model.layers * model.top_k)
        export_trace(trace, folder / "pieces", format)
    assert (folder / "whole").read_bytes() == (folder / "pieces").read_bytes()


def test_interleaved_requests_come_back(tmp_path: Path, model: MoEModel) -> None:
    rows, requests = interleaved(400, model)
    trace = open_trace(save(tmp_path / "t", model, rows, requests))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_r3, "_GROUP_BYTES", 1)
        export_trace(trace, tmp_path / "r.jsonl", "r3")
    again, _ = imported(tmp_path / "r.jsonl", tmp_path / "again", model=model)
    order = np.lexsort((trace.position, trace.request))
    for layer, ordinal in zip(trace.layers, range(3), strict=True):
        recorded = rows.recorded[order, ordinal]  # type: ignore[index]
        assert (again.recorded(layer) == recorded).all()
        assert (again.experts(layer) == rows.experts[order, ordinal][recorded]).all()


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def written(path: Path, tokens: int) -> Trace:
    """30 requests at a time, of 24 layers and top-8: 192 bytes of ids a token."""
    model = MoEModel.from_config(small_config(25, 64, 8))
    with TraceWriter(path, model, clock_base=0.0) as writer:
        for start in range(0, tokens, 10_000):
            rows, _ = interleaved(10_000, model, start)
            token = start + np.arange(10_000)
            moved = {
                "step": token // 30,
                "request": (token % 30 + 30 * (token // 30_000)).astype(np.int32),
                "position": (token % 30_000 // 30).astype(np.int32),
                "recorded": None,
            }
            writer.write(TokenRows(**{**vars(rows), **moved}))
    trace = open_trace(path)
    trace.request, trace.position  # noqa: B018  the columns by token, 4 bytes each, are kept
    return trace


@pytest.mark.parametrize("format", ["oracle-general", "r3"])
def test_memory_does_not_grow_with_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """Twice the recording takes 24 bytes a token more, where its ids take 192."""
    monkeypatch.setattr(export_r3, "_GROUP_BYTES", MIB)
    peaks, sizes = [], []
    for tokens in (30_000, 60_000):
        trace, file = written(tmp_path / f"{tokens}", tokens), tmp_path / f"{tokens}.out"
        peaks.append(peak_of(lambda trace=trace, file=file: export_trace(trace, file, format)))
        sizes.append(file.stat().st_size)
    assert sizes[1] - sizes[0] > 7 * MIB
    assert peaks[1] - peaks[0] < 30_000 * 32, (sizes, peaks)
