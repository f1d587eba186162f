"""Recorded and stated routing as the law of a step takes it: relative to even routing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.projection import plan_deployment, project_deployment
from moeprof.projection.routing import PowerLawRouting, UniformRouting, shape_of
from moeprof.projection.step import EvenLoads, RoutedLoads, recorded_loads
from moeprof.projection.step.timed_experts import timed_experts
from moeprof.trace import Trace

M3 = MoEModel.preset("minimax-m3")
ASKED = {"precision": "mxfp8", "concurrency": 16, "input_len": 1024, "output_len": 256}


def test_even_routing_is_its_own_reference() -> None:
    routed, even = RoutedLoads(UniformRouting(shape_of(M3)), 8), EvenLoads(shape_of(M3), 8)
    for tokens in (1.0, 8.0, 300.0):
        assert routed.distinct(tokens) == pytest.approx(even.distinct(tokens))
        assert routed.imbalance(tokens) == pytest.approx(1.0)
    assert routed.distinct(0.0) == 0


def test_skew_reads_fewer_experts_and_loads_the_busiest_rank() -> None:
    skewed, even = RoutedLoads(PowerLawRouting(shape_of(M3), 1.2), 8), EvenLoads(shape_of(M3), 8)
    assert skewed.distinct(64.0) < even.distinct(64.0)
    assert skewed.imbalance(4096.0) > 1.2


def test_skew_makes_a_small_step_faster_under_tensor_parallelism() -> None:
    loads = RoutedLoads(PowerLawRouting(shape_of(M3), 1.2), 1)
    even, skewed = (
        project_deployment("minimax-m3", "8xh200", loads=each, **ASKED)  # type: ignore[arg-type]
        for each in (None, loads)
    )
    assert skewed.operations["routed experts"] < even.operations["routed experts"]
    assert skewed.tpot_ms is not None and even.tpot_ms is not None
    assert skewed.tpot_ms.value < even.tpot_ms.value


def test_a_recording_of_another_model_needs_a_transfer(trace: Trace) -> None:
    with pytest.raises(InputError, match="transfer"):
        recorded_loads(trace, M3)
    loads = recorded_loads(trace, M3, transfer="distinct-ratio")
    assert 0 < loads.distinct(16.0) < 128
    projected = project_deployment("minimax-m3", "8xh200", loads=loads, **ASKED)  # type: ignore[arg-type]
    assert projected.tpot_ms is not None
    assert projected.tpot_ms.provenance == "assumed"


def test_timed_kernels_replace_the_law_for_their_own_shape_alone() -> None:
    def timed(model: str, precision: str, hardware: str = "8xh200") -> object:
        deployment = plan_deployment(model, hardware, precision=precision)
        return timed_experts(deployment, EvenLoads(shape_of(deployment.model), 1))

    assert timed("minimax-m3", "mxfp8") is None  # no table has the format
    assert timed("minimax-m2.5", "bf16") is None  # another shape
    assert timed("minimax-m3", "bf16", "8xmi300x") is None  # no table of the GPU
    seconds = timed("minimax-m3", "bf16")
    assert isinstance(seconds, Callable)
    times = np.array([seconds(n) for n in (0, 1, 16, 64, 1024, 8192)])
    assert times[0] == 0
    assert (np.diff(times) > 0).all()
    read = 57 * 128 * 113_246_208 / 8 / 4.8e12  # all experts at peak bandwidth
    assert read < times[3] < 1.5 * read


def test_measured_operations_are_said_to_be() -> None:
    bf16 = project_deployment("minimax-m3", "8xh200", **{**ASKED, "precision": "bf16"})  # type: ignore[arg-type]
    assert set(bf16.measured) == {"routed experts", "prefill: routed experts"}
    assert project_deployment("minimax-m3", "8xh200", **ASKED).measured == ()  # type: ignore[arg-type]
