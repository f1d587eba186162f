"""A sweep over redundancy in tokens/s of a deployment."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moeprof.errors import InputError
from moeprof.model import load_model
from moeprof.placement.sweep import RedundancySweep, sweep_redundancy
from moeprof.projection import project_deployment
from moeprof.projection.placed_speed import project_sweep
from moeprof.projection.routing import TraceRouting, TransferredRouting, shape_of
from moeprof.projection.step.loads import RoutedLoads
from moeprof.report.text.placement_studies import sweep_text
from moeprof.trace import Trace, open_trace
from tests.recordings import SHIPPED

LENGTHS = {"input_len": 1024, "output_len": 256}


@pytest.fixture(scope="module")
def trace() -> Trace:
    return open_trace(SHIPPED)


@pytest.fixture(scope="module")
def sweep(trace: Trace) -> RedundancySweep:
    return sweep_redundancy(trace, 8, (0, 8), split="request", batch=64, resamples=0)


def test_a_row_is_the_projection_of_its_map(trace: Trace, sweep: RedundancySweep) -> None:
    options = {"precision": "nvfp4", **LENGTHS}
    found = project_sweep(
        sweep, trace, "8xb200", model="minimax-m3", transfer="distinct-ratio", **options
    )
    m3, row = load_model("minimax-m3"), found.rows[1]
    recorded = TraceRouting(trace, row.placement, keep=sweep.judged, share=sweep.share)
    alone = project_deployment(
        m3,
        "8xb200",
        ep=8,
        concurrency=64,
        redundant=16,  # 8 of 64 experts, so 16 of 128
        loads=RoutedLoads(TransferredRouting(recorded, shape_of(m3)), 8),
        **options,  # type: ignore[arg-type]
    )
    assert row.tok_s is not None
    assert alone.output_tok_s is not None
    assert (row.tok_s.value, row.fits) == (alone.output_tok_s.value, True)
    assert row.tok_s.provenance == "assumed"
    text = sweep_text(found)
    assert "output tok/s" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "output tok/s" not in sweep_text(sweep)


def test_what_is_missing_is_asked_for(trace: Trace, sweep: RedundancySweep) -> None:
    with pytest.raises(InputError, match="--transfer"):
        project_sweep(sweep, trace, "8xb200", model="minimax-m3", **LENGTHS)
    with pytest.raises(InputError, match="--batch"):
        project_sweep(replace(sweep, batch=None), trace, "8xb200", **LENGTHS)
    with pytest.raises(InputError, match="input_len"):
        project_sweep(sweep, trace, "8xb200", model="minimax-m3", transfer="distinct-ratio")
