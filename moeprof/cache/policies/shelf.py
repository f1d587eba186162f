"""What every policy works on: which items are resident, and the event that pins some of them.

An item is an expert of one layer: `layer x experts + expert` in a global cache, the expert's id
in a layer's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

NEVER = 2**62  # the event of a next use that does not come
NO_EVENT = -2  # no item was named by it, so it pins nothing


Hook = TypeVar("Hook", bound=Callable[..., Any])


def hook(function: Hook) -> Hook:
    """Compile what a policy does so that it is inlined into the one loop of replay.

    Nothing in it allocates: without Numba's reference counts, which are atomic additions in the
    loop, it is up to six times as fast.
    """
    inlined: Hook = njit(cache=True, nogil=True, forceinline=True, _nrt=False)(function)
    return inlined


class Shelf(NamedTuple):
    """The cache as its policy sees it."""

    resident: NDArray[np.uint8]  # [items] 1 where the item is in the cache
    last_event: NDArray[np.int64]  # [items] the last event that named the item, -1 before any
    size: NDArray[np.int64]  # [items] slots or bytes that the item takes
    free: NDArray[np.int64]  # [1] slots or bytes that are left
    capacity: NDArray[np.int64]  # [1]
    clock: NDArray[np.int64]  # [2] the step, and the event counted over all layers of the cache
    next_use: NDArray[np.int64]  # [items] the event that names it next, for policies with FORESIGHT
    weight: NDArray[np.float64]  # [items] tokens of the event that want it, or their gate weights
    waiting: NDArray[np.int32]  # [items] misses that come in between steps, serving `deferred`
    flying: NDArray[np.int32]  # [items] those on their way
    queued: NDArray[np.int64]  # [2] how many wait, how many are on their way


def new_shelf(size: NDArray[np.int64], capacity: int) -> Shelf:
    """An empty cache of `capacity` for items of `size` [items]."""
    items = len(size)
    return Shelf(
        np.zeros(items, np.uint8),
        np.full(items, -1, np.int64),
        size,
        np.array([capacity], np.int64),
        np.array([capacity], np.int64),
        np.zeros(2, np.int64),
        np.full(items, NEVER, np.int64),
        np.zeros(items),
        np.zeros(items, np.int32),
        np.zeros(items, np.int32),
        np.zeros(2, np.int64),
    )


@hook
def put(shelf: Shelf, item: int) -> None:
    """`item` becomes resident."""
    shelf.resident[item] = 1
    shelf.free[0] -= shelf.size[item]


@hook
def drop(shelf: Shelf, item: int) -> None:
    """`item` leaves."""
    shelf.resident[item] = 0
    shelf.free[0] += shelf.size[item]


@hook
def pinned(shelf: Shelf, item: int, event: int) -> bool:
    """Whether `event` needs `item`, so that it must not make room now."""
    return bool(shelf.last_event[item] == event)


@hook
def ignore(shelf: Shelf, state: object, item: int) -> None:
    """What a policy does about an arrival that it takes no note of."""


@hook
def ignore_hit(shelf: Shelf, state: object, item: int, event: int) -> None:
    """What a policy does about a hit that it takes no note of."""
