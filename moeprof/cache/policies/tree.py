"""Which resident has the lowest key: a tournament tree, one comparison a level for a change."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.policies.shelf import Shelf, hook, pinned

ABSENT = np.iinfo(np.int64).max  # the key of what is not resident


class Tree(NamedTuple):
    """Node 1 is the winner, leaf i is node `leaves + i`."""

    key: NDArray[np.int64]  # [2 x leaves]
    winner: NDArray[np.int32]  # [2 x leaves] item with the lowest key below
    aside: NDArray[np.int32]  # [items] winners that may not go now
    aside_key: NDArray[np.int64]  # [items]


def new_tree(items: int) -> Tree:
    """Nobody is resident."""
    leaves = 1 << max(items - 1, 1).bit_length()
    winner = np.zeros(2 * leaves, np.int32)
    winner[leaves:] = np.arange(leaves)
    return Tree(
        np.full(2 * leaves, ABSENT),
        winner,
        np.zeros(items, np.int32),
        np.zeros(items, np.int64),
    )


@hook
def set_key(tree: Tree, item: int, key: int) -> None:
    """Give `item` a key, or ABSENT."""
    node = len(tree.key) // 2 + item
    tree.key[node] = key
    while node > 1:
        node >>= 1
        left = 2 * node
        better = left + (tree.key[left + 1] < tree.key[left])
        tree.key[node] = tree.key[better]
        tree.winner[node] = tree.winner[better]


@hook
def take_lowest(tree: Tree, shelf: Shelf, event: int) -> int:
    """The item with the lowest key that `event` does not need, taken out; -1 where none is."""
    count = 0
    while tree.key[1] != ABSENT and pinned(shelf, tree.winner[1], event):
        winner = tree.winner[1]
        tree.aside[count] = winner
        tree.aside_key[count] = tree.key[1]
        count += 1
        set_key(tree, winner, ABSENT)
    victim = -1
    if tree.key[1] != ABSENT:
        victim = int(tree.winner[1])
        set_key(tree, victim, ABSENT)
    for i in range(count):
        set_key(tree, tree.aside[i], tree.aside_key[i])
    return victim
