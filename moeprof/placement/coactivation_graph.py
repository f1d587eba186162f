"""Experts of one layer that tokens use together: the graph, and its communities.

An edge weighs the lift of a pair, how often tokens use both over how often they would by chance at
the same loads. Counts, chance, edges and communities are those of `analyze_affinity`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeprof.analysis.affinity.communities import find_communities, strongest_edges
from moeprof.analysis.affinity.pairs import compare_to_chance, count_blocks
from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.trace import Trace


@dataclass(frozen=True)
class CoactivationGraph(Result):
    """One layer. Edges are (expert, expert, lift), those furthest beyond chance first."""

    layer: int
    experts: int
    edges: list[tuple[int, int, float]]
    share: list[float]  # by expert: of the layer's assignments
    community: list[int]  # by expert
    modularity: float


def coactivation_graph(trace: Trace, layer: int, *, seed: int = 0) -> CoactivationGraph:
    """The graph of native layer `layer`. Raises TraceError where it was not recorded, InputError
    where tokens use one expert each, or all.
    """
    size = trace.experts_per_layer
    if not 1 < trace.top_k < size - 1:
        raise InputError(
            f"{trace}: tokens use {trace.top_k} of {size} experts a layer: no pair is a choice"
        )
    ids = trace.experts(layer)
    blocks = count_blocks(ids, np.zeros(len(ids), np.int64), 1, size)
    pairs = compare_to_chance(blocks, trace.top_k)
    edges = strongest_edges(pairs.z, pairs.lift, size)
    groups = find_communities(edges, size, seed)
    used = blocks.load[0]
    return CoactivationGraph(
        layer=layer,
        experts=size,
        edges=edges,
        share=(used / max(used.sum(), 1)).tolist(),
        community=groups.member.tolist(),
        modularity=groups.modularity,
    )
