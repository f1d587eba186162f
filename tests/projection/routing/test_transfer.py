"""A recording of another model: refused, unless it is said how it is carried over."""

from __future__ import annotations

import numpy as np
import pytest

from moeprof.errors import InputError
from moeprof.model import load_model
from moeprof.projection.routing import (
    Shape,
    TraceRouting,
    TransferredRouting,
    UniformRouting,
    routing_for,
    shape_of,
)
from moeprof.projection.routing.step_load import compared_fields
from moeprof.trace import open_trace
from tests.projection.routing.test_recorded import small_trace
from tests.recordings import SHIPPED


def test_another_model_is_refused_without_a_method() -> None:
    trace, m3 = open_trace(SHIPPED), load_model("minimax-m3")
    with pytest.raises(InputError, match="--transfer distinct-ratio"):
        routing_for(TraceRouting(trace), trace, m3)
    with pytest.raises(InputError, match="not one of distinct-ratio"):
        routing_for(TraceRouting(trace), trace, m3, "hope")
    with pytest.raises(InputError, match="no MoE layers"):
        routing_for(TraceRouting(trace), trace, load_model("llama-3.1-70b"), "distinct-ratio")


def test_its_own_model_needs_none() -> None:
    trace = small_trace([3, 3])
    routing = TraceRouting(trace)
    assert routing_for(routing, trace, trace.model) is routing


def test_to_its_own_shape_nothing_changes_but_the_provenance() -> None:
    routing = TraceRouting(small_trace([3, 3, 4]))
    carried = TransferredRouting(routing, routing.shape).load(3, 2)
    assert compared_fields(carried) == pytest.approx(compared_fields(routing.load(3, 2)))
    assert carried.provenance == "assumed"


def test_even_routing_stays_even() -> None:
    small, m3 = UniformRouting(Shape(8, 64, 4)), shape_of(load_model("minimax-m3"))
    for tokens in (1, 20, 3000):
        carried = TransferredRouting(small, m3).load(tokens, 8)
        even = UniformRouting(m3).load(tokens, 8)
        assert compared_fields(carried) == pytest.approx(compared_fields(even))


def test_layers_take_the_ratio_of_their_depth() -> None:
    trace, m3 = open_trace(SHIPPED), load_model("minimax-m3")
    routing = TraceRouting(trace)
    load = routing_for(routing, trace, m3, "distinct-ratio").load(64, 8)
    here, even = routing.load(64, 8), UniformRouting(routing.shape).load(64, 8)
    ratio = load.distinct / UniformRouting(load.shape).load(64, 8).distinct
    assert load.distinct.shape == (57,)
    assert ratio[[0, 56]] == pytest.approx((here.distinct / even.distinct)[[0, 7]])
    assert np.flatnonzero(~np.isclose(np.diff(ratio), 0)).size <= 7  # steps from layer to layer
    assert load.provenance == "assumed"


def test_more_ranks_than_the_recorded_model_has_experts_are_refused() -> None:
    carried = TransferredRouting(UniformRouting(Shape(8, 64, 4)), Shape(57, 128, 4))
    with pytest.raises(InputError, match="128 ranks for 64 experts"):
        carried.load(64, 128)
