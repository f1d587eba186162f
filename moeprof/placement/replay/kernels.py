"""Compiled loops over tokens. Import this only where one is called."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

EQUAL, ROUND_ROBIN, LEVEL = 0, 1, 2  # how the replicas of an expert share a step's tokens
_SWEEPS = 2000
_SETTLED = 1e-6  # tokens


@njit(cache=True, nogil=True)
def replay_layer(
    experts: NDArray[np.unsignedinteger],
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    first: NDArray[np.int64],
    ranks: NDArray[np.int64],
    rule: int,
    total: NDArray[np.float64],
    busiest: NDArray[np.float64],
    assigned: NDArray[np.int64],
) -> int:
    """Load of every rank in every step of one layer; returns how many ids name no expert.

    Step s is rows[starts[s]:starts[s + 1]] of `experts` [rows, k], -1 for a token without this
    layer. Replica i of expert e is on ranks[first[e] + i]. Adds the ranks' loads to `total` [ranks]
    and writes the busiest one's to `busiest` and the assignments to `assigned`, both [steps].
    """
    ids, k = len(first) - 1, experts.shape[1]
    count, load, share = np.zeros(ids, np.int64), np.zeros(len(total)), np.zeros(len(ranks))
    foreign = 0
    for step in range(len(starts) - 1):
        count[:] = 0
        for place in range(starts[step], starts[step + 1]):
            row = rows[place]
            if row >= 0:
                for slot in range(k):
                    expert = experts[row, slot]
                    if expert < ids:
                        count[expert] += 1
                    else:
                        foreign += 1
        share_tokens(count, first, ranks, rule, load, share)
        top = 0.0
        for rank in range(len(load)):
            total[rank] += load[rank]
            top = max(top, load[rank])
        busiest[step] = top
        assigned[step] = count.sum()
    return foreign


@njit(cache=True, nogil=True)
def share_tokens(
    count: NDArray[np.int64],
    first: NDArray[np.int64],
    ranks: NDArray[np.int64],
    rule: int,
    load: NDArray[np.float64],
    share: NDArray[np.float64],
) -> None:
    """What each replica (`share` [slots]) and each rank (`load`) gets of `count` [experts]."""
    load[:] = 0.0
    for expert in range(len(count)):
        begin, end = first[expert], first[expert + 1]
        each, more = count[expert] // (end - begin), count[expert] % (end - begin)
        for slot in range(begin, end):
            if rule == ROUND_ROBIN:
                share[slot] = each + (slot - begin < more)
            else:
                share[slot] = count[expert] / (end - begin)
            load[ranks[slot]] += share[slot]
    if rule == LEVEL:
        _level(count, first, ranks, load, share)


@njit(cache=True, nogil=True)
def _level(
    count: NDArray[np.int64],
    first: NDArray[np.int64],
    ranks: NDArray[np.int64],
    load: NDArray[np.float64],
    share: NDArray[np.float64],
) -> None:
    """Move shares until no expert can be split more evenly over its ranks.

    Each expert in turn fills its ranks up to one level, which is the minimum of the sum of squared
    loads over that expert's split, so the sweeps descend to the overall minimum. The loads there
    are majorised by all others that replicas allow, so the busiest rank is as low as it can be
    (Fujishige 1980, Lexicographically optimal base of a polymatroid).
    """
    for _ in range(_SWEEPS):
        most = 0.0
        for expert in range(len(count)):
            begin, end = first[expert], first[expert + 1]
            if end - begin > 1 and count[expert] > 0:
                for slot in range(begin, end):
                    load[ranks[slot]] -= share[slot]
                level = _water_level(load, ranks[begin:end], count[expert])
                for slot in range(begin, end):
                    filled = max(0.0, level - load[ranks[slot]])
                    most = max(most, abs(filled - share[slot]))
                    share[slot] = filled
                for slot in range(begin, end):
                    load[ranks[slot]] += share[slot]
        if most < _SETTLED:
            return


@njit(cache=True, nogil=True)
def _water_level(load: NDArray[np.float64], ranks: NDArray[np.int64], amount: int) -> float:
    """The level that `amount` reaches when it fills `ranks` up from `load`."""
    floors = load[ranks]
    for i in range(1, len(floors)):  # few: np.sort takes seconds to compile
        floor, place = floors[i], i
        while place > 0 and floors[place - 1] > floor:
            floors[place] = floors[place - 1]
            place -= 1
        floors[place] = floor
    level, below = 0.0, 0.0
    for i in range(len(floors)):
        below += floors[i]
        level = (amount + below) / (i + 1)
        if i + 1 < len(floors) and level <= floors[i + 1]:
            break
    return level
