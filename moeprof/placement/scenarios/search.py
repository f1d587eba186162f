"""One map for several loads, found by local search from a given one."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moeprof.errors import InputError
from moeprof.placement.placement import Placement
from moeprof.threads import map_threads

TRIES = 40_000  # exchanges a layer
_SQUARINGS = 4  # power 16: near to the worst


def even_in_all(
    start: Placement,
    scenarios: ArrayLike,
    *,
    worst: bool = False,
    tries: int = TRIES,
    seed: int = 0,
) -> Placement:
    """A map on the topology of `start` that is even in all `scenarios` [S, layers, experts].

    What goes down, layer by layer, is the mean over scenarios of the imbalance, or with `worst`
    nearly the highest one (its 16th power). Every scenario and layer counts alike, whatever its
    unit. Raises InputError for other shapes, a load that is no number, and a `start` that holds
    an expert twice on a GPU.
    """
    loads = np.asarray(scenarios, np.float64)
    if loads.shape[1:] != (start.layers, start.experts) or not len(loads):
        raise InputError(
            f"scenarios of shape {loads.shape} for a map of {start.layers} layers x "
            f"{start.experts} experts"
        )
    if not np.isfinite(loads).all() or loads.min() < 0:
        raise InputError("scenarios: loads are numbers from 0")
    if start.duplicates:
        raise InputError(f"the map to start from holds {start.duplicates} experts twice on a GPU")

    def solve(layer: int) -> NDArray[np.int64]:
        return _search(start, layer, loads[:, layer], worst, tries, seed)

    table = np.stack(map_threads(solve, range(start.layers)))
    return Placement(table, start.experts, start.topology, expert_bytes=start.expert_bytes)


def _search(
    start: Placement, layer: int, loads: NDArray[np.float64], worst: bool, tries: int, seed: int
) -> NDArray[np.int64]:
    """[slots] one layer; scenarios without load in it are left out."""
    from moeprof.placement.scenarios.kernels import State, search

    topology = start.topology
    whole = loads.sum(axis=1)
    weight = loads[whole > 0] / whole[whole > 0, None] * topology.gpus
    slot: NDArray[np.int64] = start.physical_to_logical_map[layer].copy()
    if topology.gpus < 2 or not len(weight):
        return slot
    held, count = start.copies_on_rank[layer] > 0, start.logical_replica_count[layer].copy()
    state = State(
        weight,
        topology.rank_of_slot(),
        topology.first_slot(),
        slot,
        count,
        held,
        (weight / count) @ held.T,
        np.zeros((len(weight), 3)),
        np.zeros((len(weight), 2), np.int64),
    )
    found: NDArray[np.int64] = search(
        state, tries, _SQUARINGS if worst else 0, seed * start.layers + layer
    )
    return found
