"""What no map can beat: lower bounds on the busiest GPU's load, replicas sharing equally.

The largest of three: the mean load of a GPU; the heaviest replica when all redundant slots serve
to make it light, by water-filling, which is optimal for that; and without redundancy, for each k,
what a GPU has that holds k + 1 of the k G + 1 heaviest experts, as one must (pigeonhole).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moeprof.placement.checks import check_load, check_topology
from moeprof.placement.topology import Topology


def lower_bound_by_layer(load: ArrayLike, topology: Topology) -> NDArray[np.float64]:
    """[layers] load that the busiest GPU has at least, in every map of `load` [layers, experts].

    Raises InputError for a load or a topology that cannot be solved.
    """
    given = check_load(load)
    check_topology(topology, given.shape[1])
    bounds: NDArray[np.float64] = np.maximum(
        given.sum(axis=1) / topology.gpus, _heaviest_replica(given, topology)
    )
    if topology.slots_in_all == given.shape[1]:
        bounds = np.maximum(bounds, _pigeonhole(given, topology))
    return bounds


def lower_bound(load: ArrayLike, topology: Topology) -> float:
    """The imbalance that no map of `load` [layers, experts] can beat: mean over layers."""
    given = check_load(load)
    mean = given.sum(axis=1) / topology.gpus
    return float((lower_bound_by_layer(given, topology) / mean).mean())


def _heaviest_replica(load: NDArray[np.float64], topology: Topology) -> NDArray[np.float64]:
    """[layers] weight of the heaviest replica, at best."""
    from moeprof.placement.solvers.kernels import replicate

    first = topology.first_slot()
    counts = np.array([replicate(row, first, True) for row in load])
    heaviest: NDArray[np.float64] = (load / counts).max(axis=1)
    return heaviest


def _pigeonhole(load: NDArray[np.float64], topology: Topology) -> NDArray[np.float64]:
    """[layers] the lightest k + 1 of the kG + 1 heaviest, and the lightest of all beside them."""
    ascending = np.sort(load, axis=1)
    heaviest = ascending[:, ::-1]
    fewest = min(topology.slots)
    bound = np.zeros(len(load))
    for k in range(max(topology.slots)):
        if k * topology.gpus < load.shape[1]:
            crowd = heaviest[:, k * topology.gpus - k : k * topology.gpus + 1].sum(axis=1)
            rest = ascending[:, : max(fewest - k - 1, 0)].sum(axis=1)
            bound = np.maximum(bound, crowd + rest)
    return bound
