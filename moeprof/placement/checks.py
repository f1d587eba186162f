"""What cannot be placed, said in one line."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moeprof.errors import InputError
from moeprof.placement.topology import Topology


def check_load(load: ArrayLike) -> NDArray[np.float64]:
    """`load` [layers, experts] as floats.

    Raises InputError, with the layer, where it is no load: not two axes, negative, NaN or
    infinite, or a layer of zeros.
    """
    try:
        given = np.asarray(load, np.float64)
    except (TypeError, ValueError):
        raise InputError("the load is not an array of numbers: [layers, experts]") from None
    if given.ndim != 2 or not given.size:
        raise InputError(f"a load of shape {given.shape}: [layers, experts] is needed")
    for bad, what in (
        (~np.isfinite(given), "is not finite"),
        (given < 0, "is negative"),
    ):
        if bad.any():
            layer, expert = np.argwhere(bad)[0]
            raise InputError(
                f"the load of layer {layer}, expert {expert} {what}: {given[layer, expert]}"
            )
    if not given.any(axis=1).all():
        layer = int(np.argmin(given.any(axis=1)))
        raise InputError(f"layer {layer} has no load at all: there is nothing to balance")
    return given


def check_topology(topology: Topology, experts: int) -> None:
    """Raises InputError where `experts` a layer cannot be placed on `topology`, each GPU once."""
    if topology.gpus < 2:
        raise InputError("one GPU holds every expert: there is nothing to place, give 2 or more")
    topology.refuse_too_few_slots(experts)
    for rank, count in enumerate(topology.slots):
        if count > experts:
            raise InputError(
                f"GPU {rank} has {count} slots for {experts} experts: "
                "one would stand there twice, give fewer redundant experts"
            )
