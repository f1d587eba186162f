"""Where an item's layer stands: what policies ask that look at layers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook


class Layers(NamedTuple):
    """The layers that share a cache, in the order in which a step passes through them."""

    of: NDArray[np.int32]  # [items] layer of the item
    shape: NDArray[np.int64]  # [2] layers, experts of each


def new_layers(setup: Setup) -> Layers:
    """Items count through the experts of a layer, then through the layers."""
    of = np.repeat(np.arange(setup.layers, dtype=np.int32), setup.experts)
    return Layers(of, np.array([setup.layers, setup.experts], np.int64))


@hook
def at_work(layers: Layers, shelf: Shelf) -> int:
    """The layer whose event it is."""
    return int(shelf.clock[1] % layers.shape[0])
