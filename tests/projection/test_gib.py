"""A GiB more beside a deployment, each use as two projections that differ in it alone."""

from __future__ import annotations

from typing import Any

import pytest

from moeprof.cli.main import main
from moeprof.errors import InputError
from moeprof.placement.sweep import sweep_redundancy
from moeprof.projection import project_deployment
from moeprof.projection.gib import project_gib
from moeprof.projection.placed_speed import project_sweep
from moeprof.trace import Trace, open_trace
from tests.recordings import SHIPPED

GIB = 1 << 30
SERVED: dict[str, Any] = {
    "model": "minimax-m3",
    "precision": "nvfp4",
    "transfer": "distinct-ratio",
    "input_len": 8192,
    "output_len": 1024,
}


@pytest.fixture(scope="module")
def trace() -> Trace:
    return open_trace(SHIPPED)


def test_each_use_is_the_difference_of_two_projections(trace: Trace) -> None:
    value = project_gib(trace, "8xb200", concurrency=16, **SERVED)
    found = {use.use: use for use in value.uses}
    sweep = sweep_redundancy(trace, 8, (0, 8), split="request", batch=16, resamples=0)
    plain, redundant = (row.tok_s for row in project_sweep(sweep, trace, "8xb200", **SERVED).rows)
    wider = project_sweep(sweep, trace, "8xb200", concurrency=18, **SERVED).rows[0].tok_s
    assert plain is not None
    assert redundant is not None
    assert wider is not None
    kv, replicas = found["kv"], found["redundancy"]
    assert (kv.added, kv.tok_s_before, kv.tok_s_after) == (2, plain.value, wider.value)
    assert (replicas.tok_s_before, replicas.tok_s_after) == (plain.value, redundant.value)
    # Two slots of M3 a GPU, as one of tiny-m3's is of half as many experts.
    routed = project_deployment(
        "minimax-m3", "8xb200", precision="nvfp4", ep=8, input_len=8192, output_len=1024
    ).memory["routed"]
    assert replicas.added == 2
    assert replicas.added_bytes == pytest.approx(routed / 8, rel=0.001)
    for use in value.uses:
        gain = (use.tok_s_after - use.tok_s_before) / (use.added_bytes / GIB)
        assert use.tok_s_per_gib == pytest.approx(gain)
        assert use.provenance == "assumed"


def test_more_than_fits_is_refused(trace: Trace) -> None:
    with pytest.raises(InputError, match="give a lower concurrency"):
        project_gib(trace, "8xb200", concurrency=400, **SERVED)


def test_one_gpu_has_nobody_to_share_with(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["project", "gib", str(SHIPPED), "--model", "minimax-m3", "--quiet", "--hardware"]
    assert main([*line, "1xh200"]) == 2
    assert "give 2 or more" in capsys.readouterr().err
    assert main([*line, "8xh200", "--precision", "nvfp4"]) == 2
    assert "--transfer" in capsys.readouterr().err
