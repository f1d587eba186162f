"""Experts of one layer that tokens use together: the graph, and its communities.

An edge weighs the lift of a pair, how often tokens use both over how often they would by chance:

    lift(a, b) = n_ab N / (n_a n_b)    with N tokens, n_a of them use a, n_ab both

The strongest edges are kept. Communities are Louvain's (Blondel et al. 2008, Fast unfolding of
communities in large networks).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.trace import Trace

_EDGES_AN_EXPERT = 4
_LEAST_TOGETHER = 5  # tokens: less is chance


@dataclass(frozen=True)
class CoactivationGraph(Result):
    """One layer. Edges are (expert, expert, lift), strongest first."""

    layer: int
    experts: int
    edges: list[tuple[int, int, float]]
    share: list[float]  # by expert: of the layer's assignments
    community: list[int]  # by expert
    modularity: float


def coactivation_graph(trace: Trace, layer: int, *, seed: int = 0) -> CoactivationGraph:
    """The graph of native layer `layer`. Raises TraceError where it was not recorded, InputError
    where tokens use one expert each.
    """
    import networkx as nx

    if trace.top_k < 2:
        raise InputError(f"{trace}: tokens use one expert a layer, none together")
    together = count_together(trace.experts(layer), trace.experts_per_layer)
    edges = _strongest(together, len(trace.experts(layer)))
    graph = nx.Graph()
    graph.add_nodes_from(range(trace.experts_per_layer))
    graph.add_weighted_edges_from(edges)
    groups = sorted(nx.community.louvain_communities(graph, seed=seed), key=min) if edges else []
    community = [-1] * trace.experts_per_layer
    for number, members in enumerate(groups):
        for expert in members:
            community[expert] = number
    used = np.diag(together)
    return CoactivationGraph(
        layer=layer,
        experts=trace.experts_per_layer,
        edges=edges,
        share=(used / max(used.sum(), 1)).tolist(),
        community=community,
        modularity=float(nx.community.modularity(graph, groups)) if edges else 0.0,
    )


def count_together(experts: NDArray[np.unsignedinteger], count: int) -> NDArray[np.int64]:
    """[count, count] tokens that use both experts; on the diagonal, that use the one."""
    together = np.zeros(count * count, np.int64)
    wide = experts.astype(np.int64)
    for i in range(experts.shape[1]):
        for j in range(experts.shape[1]):
            together += np.bincount(wide[:, i] * count + wide[:, j], minlength=count * count)
    return together.reshape(count, count)


def _strongest(together: NDArray[np.int64], tokens: int) -> list[tuple[int, int, float]]:
    used = np.maximum(np.diag(together), 1)
    lift = together * tokens / np.outer(used, used)
    lift[together < _LEAST_TOGETHER] = 0.0
    first, second = np.triu_indices(len(lift), 1)
    weight = lift[first, second]
    order = np.argsort(-weight, kind="stable")[: _EDGES_AN_EXPERT * len(lift)]
    chosen = order[weight[order] > 1]
    return [
        (int(a), int(b), float(w))
        for a, b, w in zip(first[chosen], second[chosen], weight[chosen], strict=True)
    ]
