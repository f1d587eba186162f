"""Which resident has the lowest rate, uses / age, as time passes: a kinetic tournament tree.

Of two items the order changes at most once, since uses x (the other's age) is linear in time. A
node keeps its winner and the first time at which that may be another, and is looked at no sooner
(Basch, Guibas and Hershberger 1997, doi:10.1145/314161.314435). Whole numbers, hence exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.shelf import Shelf, hook, pinned

FOREVER = np.iinfo(np.int64).max


class Kinetic(NamedTuple):
    """Node 1 is the winner, leaf i is node `leaves + i`; -1 where nobody is."""

    uses: NDArray[np.int64]  # [items]
    last: NDArray[np.int64]  # [items] time of the last use
    order: NDArray[np.int64]  # [items] of equal rates, the lower goes
    winner: NDArray[np.int32]  # [2 x leaves]
    until: NDArray[np.int64]  # [2 x leaves] when the winner may be another
    aside: NDArray[np.int32]  # [items] winners that may not go now


def new_kinetic(items: int) -> Kinetic:
    """Nobody is resident; of equal rates, the lowest id goes."""
    leaves = 1 << max(items - 1, 1).bit_length()
    return Kinetic(
        np.zeros(items, np.int64),
        np.zeros(items, np.int64),
        np.arange(items),
        np.full(2 * leaves, -1, np.int32),
        np.full(2 * leaves, FOREVER),
        np.zeros(items, np.int32),
    )


@hook
def _refresh(tree: Kinetic, node: int, now: int) -> None:
    """Who wins `node` of its two children, and until when."""
    left, right = tree.winner[2 * node], tree.winner[2 * node + 1]
    until = min(tree.until[2 * node], tree.until[2 * node + 1])
    if left < 0 or right < 0:
        tree.winner[node] = max(left, right)
        tree.until[node] = until
        return
    slope = tree.uses[left] - tree.uses[right]
    lead = tree.uses[left] * (now - tree.last[right] + 1)
    lead -= tree.uses[right] * (now - tree.last[left] + 1)
    first = lead < 0 or (lead == 0 and tree.order[left] < tree.order[right])
    tree.winner[node] = left if first else right
    if lead == 0 and slope != 0:
        until = min(until, now + 1)
    elif (lead < 0) == (slope > 0) and slope != 0:
        until = min(until, now + (abs(lead) + abs(slope) - 1) // abs(slope))
    tree.until[node] = until


@hook
def set_resident(tree: Kinetic, item: int, resident: bool, now: int) -> None:
    """`item` came, left, or has another rate."""
    node = len(tree.winner) // 2 + item
    tree.winner[node] = item if resident else -1
    while node > 1:
        node >>= 1
        _refresh(tree, node, now)


@hook
def _advance(tree: Kinetic, now: int) -> None:
    """Look again at all nodes whose winner may be another by now, the lowest first."""
    while tree.until[1] <= now:
        node = 1
        while 2 * node < len(tree.winner):
            if tree.until[2 * node] <= now:
                node = 2 * node
            elif tree.until[2 * node + 1] <= now:
                node = 2 * node + 1
            else:
                break
        while node >= 1:
            _refresh(tree, node, now)
            node >>= 1


@hook
def take_lowest_rate(tree: Kinetic, shelf: Shelf, event: int, now: int) -> int:
    """The item with the lowest rate that `event` does not need, taken out; -1 where none is."""
    count = 0
    _advance(tree, now)
    while tree.winner[1] >= 0 and pinned(shelf, tree.winner[1], event):
        tree.aside[count] = tree.winner[1]
        count += 1
        set_resident(tree, tree.winner[1], False, now)
    victim = int(tree.winner[1])
    if victim >= 0:
        set_resident(tree, victim, False, now)
    for i in range(count):
        set_resident(tree, tree.aside[i], True, now)
    return victim
