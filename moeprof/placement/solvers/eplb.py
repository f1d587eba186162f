"""DeepSeek's expert-parallelism load balancer, as a map of the same ids.

The algorithm is that of `eplb.py` in https://github.com/deepseek-ai/EPLB (MIT), written anew over
NumPy arrays of all layers at once: groups of experts are packed on nodes, the expert with the
heaviest replicas in a node gets the next one, replicas are packed on GPUs. Both packings go
heaviest first to the lightest that has room. Arithmetic is 32-bit as there, so that maps are the
same; of equal weights, the lower index goes first. An expert may stand twice on a GPU.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.placement.solvers.problem import Map, Problem

Weights = NDArray[np.float32]
Ids = NDArray[np.int64]


def eplb(problem: Problem) -> Map:
    """EPLB's `rebalance_experts`: hierarchical where the groups divide over the nodes, else global.

    Raises InputError for unequal slots, which it does not know, and for experts that do not divide
    over the groups.
    """
    topology = problem.topology
    if not topology.is_even:
        raise InputError("eplb needs the same number of slots on every GPU; best does not")
    if problem.groups < 1 or problem.experts % problem.groups:
        raise InputError(f"{problem.experts} experts do not divide over {problem.groups} groups")
    hierarchical = problem.groups % topology.nodes == 0
    nodes, groups = (topology.nodes, problem.groups) if hierarchical else (1, 1)
    weight = problem.load.astype(np.float32)
    in_node = _pack_groups(weight, groups, nodes)  # experts in order of node
    per_node = problem.experts // nodes
    node_weight = np.take_along_axis(weight, in_node, axis=1).reshape(-1, per_node)
    replicas, share = _replicate(node_weight, topology.slots_in_all // nodes)
    order = _by_pack(share, topology.gpus // nodes)
    chosen = np.take_along_axis(replicas, order, axis=1).reshape(problem.layers, nodes, -1)
    chosen += (np.arange(nodes) * per_node)[:, None]
    return np.take_along_axis(in_node, chosen.reshape(problem.layers, -1), axis=1)


def _pack_groups(weight: Weights, groups: int, nodes: int) -> Ids:
    """[layers, experts] ids, those of the first node first; a group stays together."""
    size = weight.shape[1] // groups
    order = _by_pack(weight.reshape(len(weight), groups, size).sum(axis=2), nodes)
    experts: Ids = order[:, :, None] * size + np.arange(size)
    return experts.reshape(len(weight), -1)


def _replicate(weight: Weights, slots: int) -> tuple[Ids, Weights]:
    """[rows, slots] experts, replicas after the originals, and the load of each."""
    rows, experts = weight.shape
    row = np.arange(rows)
    chosen = np.tile(np.arange(slots), (rows, 1))
    count = np.ones((rows, experts), np.float32)
    share = weight.copy()
    for slot in range(experts, slots):
        heaviest = share.argmax(axis=1)
        chosen[:, slot] = heaviest
        count[row, heaviest] += 1
        share[row, heaviest] = weight[row, heaviest] / count[row, heaviest]
    return chosen, np.take_along_axis(share, chosen, axis=1)


def _by_pack(weight: Weights, packs: int) -> Ids:
    """[rows, items] items in order of pack, each pack with as many and about as heavy."""
    rows, items = weight.shape
    room = items // packs
    if room == 1:
        return np.tile(np.arange(items), (rows, 1))
    row = np.arange(rows)
    total = np.zeros((rows, packs), np.float32)
    filled = np.zeros((rows, packs), np.int64)
    ordered = np.zeros((rows, items), np.int64)
    for item in np.argsort(-weight, axis=1, kind="stable").T:
        pack = np.where(filled < room, total, np.inf).argmin(axis=1)
        ordered[row, pack * room + filled[row, pack]] = item
        total[row, pack] += weight[row, item]
        filled[row, pack] += 1
    return ordered
