"""Static: the experts most used in another window are resident and never change."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, hook, ignore, ignore_hit

arrive, hit = ignore, ignore_hit


def new_state(setup: Setup) -> NDArray[np.int64]:
    """Nothing to remember."""
    return np.zeros(1, np.int64)


@hook
def evict(shelf: Shelf, state: NDArray[np.int64], item: int, event: int) -> int:
    """What comes passes through."""
    return item


@hook
def insert(shelf: Shelf, state: NDArray[np.int64], item: int, event: int) -> None:
    """Only before the first event: nobody is admitted later."""
