"""Uniform, as recorded and placed, side by side, and what that comes to in time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moeprof.errors import InputError
from moeprof.model import load_model
from moeprof.placement.mix import mix_domains
from moeprof.placement.sweep import sweep_redundancy
from moeprof.placement.topology import Topology
from moeprof.projection.moe_kernels import M3_SHAPE, ExpertShape, moe_kernel_seconds
from moeprof.projection.routing import (
    Shape,
    StepLoad,
    TraceRouting,
    UniformRouting,
    mix_speeds,
    moe_seconds,
    redundancy_speeds,
    routing_for,
    study_routing,
)
from moeprof.quantity import Provenance, Quantity
from moeprof.report.text.routing import mix_speeds_text, sensitivity_text, speeds_text
from moeprof.trace import Phase, open_trace
from tests.projection.routing.test_recorded import small_trace
from tests.recordings import SHIPPED


def weights_and_work(tokens: float, distinct: float, assignments: float) -> float:
    """Seconds of a layer that reads experts and then multiplies: any will do that grows in both."""
    return 20e-6 + 10e-6 * distinct + 0.05e-6 * assignments


def all_layers(load: StepLoad) -> Quantity:
    """Of all layers by that law."""
    return Quantity(load.seconds(weights_and_work), "s", Provenance.ASSUMED, source="a test")


def test_columns_are_the_loads_of_their_routings() -> None:
    trace = open_trace(SHIPPED)
    result = study_routing(trace, ranks=8, tokens=(8, 512), alpha=1.01, seconds=all_layers)
    assert result.routings == ["uniform", "power law 1.01", "trace", "placed"]
    assert (result.redundant, result.transfer, result.phase) == (0, None, "decode")
    assert result.judged_requests == 224
    even = UniformRouting(TraceRouting(trace).shape).load(8, 8)
    first = result.rows[0]
    assert first.mean_assignments == 4
    assert first.cells[0].distinct == pytest.approx(even.distinct[0])
    assert first.cells[0].imbalance == pytest.approx(even.imbalance)
    assert first.cells[0].moe_ms is not None
    assert first.cells[0].moe_ms.value == pytest.approx(1000 * even.seconds(weights_and_work))
    assert "a test (assumed)" in sensitivity_text(result)
    assert [cell.provenance for cell in first.cells] == ["assumed", "assumed", "measured",
                                                         "measured"]  # fmt: skip
    assert result.rows[1].cells[2].provenance == "fitted"


def test_a_placement_buys_time_where_prompts_are_long_and_skew_saves_reading_where_short() -> None:
    trace = open_trace(SHIPPED)
    rows = study_routing(
        trace, ranks=8, tokens=(16, 4096), phase=Phase.PREFILL, seconds=all_layers
    ).rows
    (even, recorded, _), (_, busy, placed) = (row.cells for row in rows)
    assert recorded.most_distinct < even.most_distinct
    assert placed.imbalance < busy.imbalance
    assert placed.moe_ms is not None
    assert busy.moe_ms is not None
    assert placed.moe_ms.value < busy.moe_ms.value


def test_another_model_is_carried_over_or_refused() -> None:
    trace, m3 = open_trace(SHIPPED), load_model("minimax-m3")
    with pytest.raises(InputError, match="--transfer"):
        study_routing(trace, m3, ranks=8)
    result = study_routing(trace, m3, ranks=8, tokens=(32,), transfer="distinct-ratio")
    assert (result.layers, result.experts) == (57, 128)
    assert {cell.provenance for cell in result.rows[0].cells} == {"assumed"}
    text = sensitivity_text(result)
    assert "routes as far from even as" in " ".join(text.split())
    assert "ms in MoE layers" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_one_rank_needs_no_placement() -> None:
    result = study_routing(small_trace([4, 4, 4]), ranks=1, tokens=(2,))
    assert result.routings == ["uniform", "trace"]
    assert result.placement is None
    text = sensitivity_text(result)
    assert "distinct experts" in text
    assert "busiest" not in text


def test_as_few_replicas_as_let_ranks_be_equal() -> None:
    result = study_routing(small_trace([4, 4, 4]), ranks=4, tokens=(2,))
    assert result.redundant == 2  # 6 experts on 4 ranks
    with pytest.raises(InputError, match="divide"):
        study_routing(small_trace([4, 4]), ranks=4, tokens=(2,), redundant=0)
    with pytest.raises(InputError, match="numbers from 1"):
        study_routing(small_trace([4, 4]), ranks=2, tokens=(0,))


def test_redundancy_in_tokens_per_second() -> None:
    trace = open_trace(SHIPPED)
    sweep = sweep_redundancy(trace, 8, (0, 8), split="request", batch=128, phase=Phase.DECODE,
                             resamples=0)  # fmt: skip
    speeds = redundancy_speeds(sweep, trace, weights_and_work)
    assert [speed.name for speed in speeds] == ["0", "8"]
    assert speeds[0].gain == 0
    assert speeds[1].gain == pytest.approx(speeds[1].tok_s / speeds[0].tok_s - 1)
    for speed, row in zip(speeds, sweep.rows, strict=True):
        # The sweep's own steps, of requests as they come, are as uneven.
        assert speed.imbalance == pytest.approx(row.step_imbalance.value, rel=0.05)
        expected = 128 / weights_and_work(128, speed.most_distinct, speed.busiest_assignments)
        assert speed.tok_s == pytest.approx(expected)
    assert max(map(len, speeds_text(speeds).splitlines())) <= 80
    recorded = sweep_redundancy(trace, 8, (0,), split="request", resamples=0)
    with pytest.raises(InputError, match="tokens of a step"):
        redundancy_speeds(recorded, trace, weights_and_work)


def test_mixes_in_tokens_per_second() -> None:
    trace = open_trace(SHIPPED)
    mix = mix_domains(trace, Topology.even(8, 64), iterations=1)
    speeds = mix_speeds(mix, trace, weights_and_work, tokens=64)
    assert list(speeds) == mix.domains
    linear = np.mean([rows[0].imbalance for rows in speeds.values()])
    robust = np.mean([rows[1].imbalance for rows in speeds.values()])
    assert robust < linear
    assert "for the worst" in mix_speeds_text(speeds)


def test_one_domain_on_the_map_for_all() -> None:
    trace = open_trace(SHIPPED)
    options = {"ranks": 8, "tokens": (32,), "phase": Phase.DECODE}
    mixed = study_routing(trace, **options)  # type: ignore[arg-type]
    alone = study_routing(trace, label="english", **options)  # type: ignore[arg-type]
    assert alone.judged_requests == 32
    assert alone.rows[0].cells[1].imbalance > 1.1 * mixed.rows[0].cells[1].imbalance
    assert (
        alone.placement.physical_to_logical_map == mixed.placement.physical_to_logical_map  # type: ignore[union-attr]
    ).all()
    assert "labelled english" in sensitivity_text(alone)
    with pytest.raises(InputError, match="labels are c, data, english"):
        study_routing(trace, label="latin", **options)  # type: ignore[arg-type]


def test_kernels_are_asked_for_every_layers_own_load() -> None:
    trace, m3 = open_trace(SHIPPED), load_model("minimax-m3")
    routing = routing_for(TraceRouting(trace), trace, m3, "distinct-ratio")
    load = routing.load(64, 8)
    found = moe_seconds(load, ExpertShape.of(m3), "h200", "vllm", "bf16")
    layers = [
        moe_kernel_seconds(
            "h200", "vllm", "bf16", M3_SHAPE, 64, distinct, assignments, ep=8, busiest=hottest
        ).seconds.item()
        for distinct, assignments, hottest in zip(
            load.most_distinct, load.busiest_assignments, load.hottest_tokens, strict=True
        )
    ]
    assert found.value == pytest.approx(sum(layers))
    assert found.provenance == "assumed"  # as the routing is, though the kernel was timed
    assert found.low is not None
    assert found.low < found.value
    text = sensitivity_text(
        study_routing(
            trace,
            m3,
            ranks=8,
            tokens=(64,),
            transfer="distinct-ratio",
            seconds=lambda load: moe_seconds(load, M3_SHAPE, "h200", "vllm", "bf16"),
        )
    )
    assert "80 % bands within" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_redundant_slots_are_read_too() -> None:
    even = UniformRouting(Shape(57, 128, 4)).load(64, 8)
    fuller = replace(even, most_distinct=even.most_distinct + 2)
    plain = moe_seconds(even, M3_SHAPE, "h200", "vllm", "bf16")
    assert moe_seconds(fuller, M3_SHAPE, "h200", "vllm", "bf16").value > plain.value
