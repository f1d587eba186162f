"""Queues of items as circular lists through sentinels: every move is a few writes, no branch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.shelf import Shelf, hook, pinned


class Queues(NamedTuple):
    """Node i below the number of items is item i; queue q has its sentinel at items + q."""

    older: NDArray[np.int32]  # [items + queues] the next towards the tail; of a sentinel, the head
    newer: NDArray[np.int32]  # [items + queues] the next towards the head; of a sentinel, the tail


def new_queues(items: int, queues: int) -> Queues:
    """`queues` empty queues; a node that is in none points to itself."""
    nodes = np.arange(items + queues, dtype=np.int32)
    return Queues(nodes.copy(), nodes.copy())


@hook
def unlink(queues: Queues, item: int) -> None:
    """Take `item` out of the queue it stands in."""
    older, newer = queues.older[item], queues.newer[item]
    queues.newer[older] = newer
    queues.older[newer] = older


@hook
def push(queues: Queues, sentinel: int, item: int) -> None:
    """Put `item`, which stands in no queue, at the head."""
    second = queues.older[sentinel]
    queues.older[sentinel] = item
    queues.newer[item] = sentinel
    queues.older[item] = second
    queues.newer[second] = item


@hook
def tail(queues: Queues, sentinel: int, shelf: Shelf, event: int) -> int:
    """The oldest item that `event` does not need, -1 where there is none."""
    item = queues.newer[sentinel]
    while item != sentinel and pinned(shelf, item, event):
        item = queues.newer[item]
    return -1 if item == sentinel else item
