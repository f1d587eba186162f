"""Groups of experts that tokens use together: the strongest pairs as a graph, and its communities.

Each expert brings EDGES_AN_EXPERT edges on average, the pairs of largest z, weighted by lift.
Communities are Louvain's (Blondel et al. 2008, doi:10.1088/1742-5468/2008/10/P10008). Any sparse
graph has modularity, a random one too (Guimera et al. 2004, doi:10.1103/PhysRevE.70.025101): it
says something beside that of the same loads dealt to tokens by chance.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EDGES_AN_EXPERT = 4

Edges = list[tuple[int, int, float]]


class Communities(NamedTuple):
    """Number of the community of each expert, the first expert's first, and the modularity."""

    member: NDArray[np.int64]  # [experts]
    modularity: float


def strongest_edges(z: NDArray[np.float64], lift: NDArray[np.float64], size: int) -> Edges:
    """(expert, expert, lift), largest z first, of pairs [pairs] in the order of `triu_indices`."""
    first, second = np.triu_indices(size, 1)
    order = np.argsort(-z, kind="stable")[: EDGES_AN_EXPERT * size]
    chosen = order[z[order] > 0]
    return list(
        zip(first[chosen].tolist(), second[chosen].tolist(), lift[chosen].tolist(), strict=True)
    )


def find_communities(edges: Edges, size: int, seed: int) -> Communities:
    """Louvain's communities of `size` experts; each alone and modularity 0 where no edge is."""
    import networkx as nx

    if not edges:
        return Communities(np.arange(size), 0.0)
    graph = nx.Graph()
    graph.add_nodes_from(range(size))
    graph.add_weighted_edges_from(edges)
    groups = sorted(nx.community.louvain_communities(graph, seed=seed), key=min)
    member = np.empty(size, np.int64)
    for number, group in enumerate(groups):
        member[list(group)] = number
    return Communities(member, float(nx.community.modularity(graph, groups)))


def adjusted_rand(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Agreement of two groupings, 1 the same, 0 as by chance (Hubert and Arabie 1985,
    doi:10.1007/BF01908075).
    """
    table = np.zeros((one.max() + 1, other.max() + 1), np.int64)
    np.add.at(table, (one, other), 1)
    both, first, second = (_pairs(part) for part in (table, table.sum(axis=1), table.sum(axis=0)))
    by_chance = first * second / max(_pairs(np.array([len(one)])), 1)
    most = (first + second) / 2
    return 1.0 if most == by_chance else float((both - by_chance) / (most - by_chance))


def _pairs(sizes: NDArray[np.int64]) -> float:
    return float((sizes * (sizes - 1) // 2).sum())
