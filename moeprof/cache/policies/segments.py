"""Several queues with their lengths, for policies that move items between queues and ghosts.

A ghost is a queue of items that are not resident any more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.queues import Queues, new_queues, push, tail, unlink
from moeprof.cache.policies.shelf import Shelf, hook

NOWHERE = -1


class Segments(NamedTuple):
    """An item stands in one queue at most."""

    queue: Queues
    where: NDArray[np.int8]  # [items] its queue, NOWHERE
    length: NDArray[np.int64]  # [queues] items in it


def new_segments(items: int, queues: int) -> Segments:
    """`queues` empty queues."""
    return Segments(
        new_queues(items, queues),
        np.full(items, NOWHERE, np.int8),
        np.zeros(queues, np.int64),
    )


@hook
def leave(segments: Segments, item: int) -> None:
    """Take `item` out of its queue, if it is in one."""
    queue = segments.where[item]
    if queue != NOWHERE:
        unlink(segments.queue, item)
        segments.length[queue] -= 1
        segments.where[item] = NOWHERE


@hook
def move(segments: Segments, item: int, queue: int) -> None:
    """Put `item` at the head of `queue`."""
    leave(segments, item)
    push(segments.queue, len(segments.where) + queue, item)
    segments.where[item] = queue
    segments.length[queue] += 1


@hook
def oldest(segments: Segments, queue: int, shelf: Shelf, event: int) -> int:
    """The oldest of `queue` that `event` does not need, -1 where there is none."""
    return tail(segments.queue, len(segments.where) + queue, shelf, event)


@hook
def trim(segments: Segments, queue: int, length: int) -> None:
    """Let the oldest of a ghost go until it has at most `length` items."""
    sentinel = len(segments.where) + queue
    while segments.length[queue] > length:
        leave(segments, segments.queue.newer[sentinel])
