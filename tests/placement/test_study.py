"""What a placement's figures are drawn from, and that each is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moeprof.analysis import analyze_affinity
from moeprof.cli.main import main
from moeprof.errors import InputError
from moeprof.placement import Placement, Topology, measure_traffic
from moeprof.placement.coactivation_graph import coactivation_graph
from moeprof.placement.matrix import node_traffic
from moeprof.placement.study import study_placement
from moeprof.report.placement_figures import PLACEMENT_FIGURES
from moeprof.trace import Trace, open_trace
from tests.recordings import SHIPPED


@pytest.fixture(scope="module")
def trace() -> Trace:
    return open_trace(SHIPPED)


def test_edges_are_what_affinity_finds(trace: Trace) -> None:
    layer = trace.layers[2]
    graph = coactivation_graph(trace, layer)
    (found,) = (one for one in analyze_affinity(trace).per_layer if one.layer == layer)
    assert (graph.community, graph.modularity) == (found.community, found.modularity)
    lifts = {(a, b): lift for a, b, lift in graph.edges}
    for pair in found.strongest:
        assert lifts[pair.experts] == pytest.approx(pair.lift)
    assert min(lifts.values()) > 1
    assert graph.modularity > 0.3
    assert graph == coactivation_graph(trace, layer)


def test_the_matrix_sums_to_what_measure_traffic_says(trace: Trace) -> None:
    """Homes dealt in turn are nearly even, so the mean over homes is nearly the model's."""
    topology = Topology.even(8, 64, nodes=4)
    placement = Placement(np.tile(np.arange(64), (8, 1)), 64, topology)
    matrix = node_traffic(trace, placement)
    assert sum(matrix.tokens) == trace.tokens
    sent = np.array(matrix.bytes_per_token)
    crossing = sent.sum(axis=1) - np.diag(sent)
    mean = np.average(crossing, weights=matrix.tokens)
    assert mean == pytest.approx(measure_traffic(trace, placement).bytes_between_nodes_per_token,
                                 rel=0.02)  # fmt: skip
    columns = np.average(sent, axis=0, weights=matrix.tokens).sum()
    model = measure_traffic(trace, placement)
    whole = model.nodes_per_token * len(trace.layers) * trace.model.hidden_size * 3
    assert columns == pytest.approx(whole)


def test_a_node_without_requests_is_named(trace: Trace) -> None:
    placement = Placement(np.tile(np.arange(64), (8, 1)), 64, Topology.even(8, 64, nodes=8))
    with pytest.raises(InputError, match="no request for node"):
        node_traffic(trace, placement, window=trace.request == trace.request[0])


def test_a_study_says_what_it_lacks_and_draws_the_rest(trace: Trace) -> None:
    study = study_placement(trace, Topology.even(8, 72), batch=32)
    assert study.missing == {"between_nodes": "all GPUs are in one node"}
    assert study.placed.imbalance_test <= study.eplb_imbalance + 0.01
    for draw in PLACEMENT_FIGURES.values():
        figure = draw(study)
        if figure is not None:
            assert figure.axes
    assert PLACEMENT_FIGURES["placement-between-nodes.png"](study) is None


def test_the_command_writes_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--gpus", "4", "--nodes", "2", "--batch", "32", "--png", str(tmp_path), "--quiet"]
    assert main(["place", "figures", str(SHIPPED), *options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert sorted(Path(path).name for path in result["figures"]) == sorted(PLACEMENT_FIGURES)
    assert all(Path(path).stat().st_size > 10_000 for path in result["figures"])
    assert main(["place", "figures", str(SHIPPED), *options]) == 2
    assert "without --force" in capsys.readouterr().err
