"""Traffic against its definition: every choice of replicas, one by one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.placement import Placement, Topology, measure_traffic
from moeprof.trace import Trace
from tests.placement.maps import placements
from tests.placement.traces import routed


def slow_places(placement: Placement, row: int, ids: list[int], place_of_slot: list[int]) -> float:
    """Distinct places of one token, mean over all choices of a replica for each expert."""
    table = placement.physical_to_logical_map[row].tolist()
    choices = [[place_of_slot[s] for s, e in enumerate(table) if e == expert] for expert in ids]
    return float(np.mean([len(set(chosen)) for chosen in product(*choices)]))


@st.composite
def routed_placements(draw: st.DrawFn) -> tuple[Trace, Placement]:
    placement = draw(placements())
    top_k = draw(st.integers(1, min(3, placement.experts)))
    tokens = draw(st.integers(1, 6))
    row = st.permutations(range(placement.experts)).map(lambda order: order[:top_k])
    shape = [[draw(row) for _ in range(placement.layers)] for _ in range(tokens)]
    return routed(np.array(shape), placement.experts), placement


@given(routed_placements())
def test_traffic_is_that_of_the_definition(case: tuple[Trace, Placement]) -> None:
    trace, placement = case
    topology = placement.topology
    rank = topology.rank_of_slot()
    found = measure_traffic(trace, placement, dispatch_bytes=1, combine_bytes=2)
    for places, mean, total, count in (
        (rank, found.gpus_per_token, found.bytes_between_gpus_per_token, topology.gpus),
        (
            topology.node_of_rank()[rank],
            found.nodes_per_token,
            found.bytes_between_nodes_per_token,
            topology.nodes,
        ),
    ):
        by_layer = [
            np.mean([slow_places(placement, row, ids, places.tolist()) for ids in chosen.tolist()])
            for row, chosen in enumerate(trace.experts(layer) for layer in trace.layers)
        ]
        assert mean == pytest.approx(np.mean(by_layer))
        sent = 3 * trace.model.hidden_size * (1 - 1 / count) * sum(by_layer)
        assert total == pytest.approx(sent)


def test_a_window_counts_its_tokens_alone() -> None:
    trace = routed(np.array([[[0, 1]], [[0, 2]]]), 4)
    placement = Placement(np.array([[0, 1, 2, 3]]), 4, Topology((2, 2)))
    both, second = (
        measure_traffic(trace, placement, window=np.array([first, True])) for first in (True, False)
    )
    assert (both.gpus_per_token, second.gpus_per_token) == (1.5, 2.0)
    assert second.tokens == 1


def test_what_cannot_be_measured_is_refused() -> None:
    trace = routed(np.array([[[0, 1]], [[0, 2]]]), 4)
    placement = Placement(np.array([[0, 1, 2, 3]]), 4, Topology((2, 2)))
    other = Placement(np.array([[0, 1, 2, 0]]), 3, Topology((2, 2)))
    with pytest.raises(InputError, match="1 layers of 4 experts were recorded"):
        measure_traffic(trace, other)
    with pytest.raises(InputError, match="no token of the window"):
        measure_traffic(trace, placement, window=np.zeros(2, np.bool_))
    with pytest.raises(InputError, match="-1 and 2"):
        measure_traffic(trace, placement, dispatch_bytes=-1)
