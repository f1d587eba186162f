"""The compiled search for a map that is even in many loads at once. Import only where called."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

_REPLACE = 0.1  # share of tries that give a slot to another expert, where there are replicas
_WORSE = 0.01  # what an exchange may add to the objective, as a share, at first
_COOLED = 0.7  # of the tries; after them nothing may get worse
_FIRST, _SECOND, _THIRD = 0, 1, 2


class State(NamedTuple):
    """One layer under S scenarios. Loads are in means of a GPU, so that even is 1."""

    weight: NDArray[np.float64]  # [S, experts]
    rank: NDArray[np.int64]  # [slots]
    first: NDArray[np.int64]  # [gpus + 1] slots of GPU g are first[g] to first[g + 1]
    slot: NDArray[np.int64]  # [slots] the expert there
    replicas: NDArray[np.int64]  # [experts] slots that hold each
    held: NDArray[np.bool_]  # [gpus, experts]
    load: NDArray[np.float64]  # [S, gpus]
    top: NDArray[np.float64]  # [S, 3] the highest loads
    who: NDArray[np.int64]  # [S, 2] the GPUs of the first two


@njit(cache=True, nogil=True)
def search(state: State, tries: int, squarings: int, seed: int) -> NDArray[np.int64]:
    """The best slots of `tries` random exchanges from those of `state`, by mean over scenarios of

        (load of the busiest GPU) ^ (2 ^ squarings)

    0 squarings is the mean, 4 are near to the worst scenario. An exchange may make things worse by
    a share that falls to nothing (Dueck, Scheuer 1990, Threshold accepting).
    """
    np.random.seed(seed)
    now = least = _refresh(state, squarings)
    kept = state.slot.copy()
    spare = len(state.slot) > len(state.replicas)
    for i in range(tries):
        worse = _WORSE * max(0.0, 1.0 - i / (_COOLED * tries))
        limit = now * _powered(1.0 + worse, squarings) - 1e-12
        busy = state.who[_scenario(state, squarings), _FIRST]
        p = np.random.randint(state.first[busy], state.first[busy + 1])
        if spare and np.random.random() < _REPLACE:
            now = _try_replace(
                state, p, np.random.randint(len(state.replicas)), now, limit, squarings
            )
        else:
            now = _try_swap(state, p, np.random.randint(len(state.slot)), now, limit, squarings)
        if now < least:
            least = now
            for slot in range(len(kept)):
                kept[slot] = state.slot[slot]
    return kept


@njit(cache=True, nogil=True)
def _scenario(state: State, squarings: int) -> int:
    """A scenario to help: any, or the worst of some where the worst decides."""
    chosen = np.random.randint(len(state.top))
    for _ in range(squarings):
        other = np.random.randint(len(state.top))
        if state.top[other, _FIRST] > state.top[chosen, _FIRST]:
            chosen = other
    return chosen


@njit(cache=True, nogil=True)
def _powered(value: float, squarings: int) -> float:
    for _ in range(squarings):
        value *= value
    return value


@njit(cache=True, nogil=True)
def _refresh(state: State, squarings: int) -> float:
    """The highest loads anew from `load`; returns the objective."""
    total = 0.0
    for s in range(len(state.load)):
        a, b, c, first, second = -1.0, -1.0, -1.0, 0, 0
        for rank in range(state.load.shape[1]):
            value = state.load[s, rank]
            if value > a:
                a, b, c, first, second = value, a, b, rank, first
            elif value > b:
                b, c, second = value, b, rank
            elif value > c:
                c = value
        state.top[s, _FIRST], state.top[s, _SECOND], state.top[s, _THIRD] = a, b, c
        state.who[s, _FIRST], state.who[s, _SECOND] = first, second
        total += _powered(a, squarings)
    return total / len(state.load)


@njit(cache=True, nogil=True)
def _try_swap(state: State, p: int, q: int, now: float, limit: float, squarings: int) -> float:
    """Exchange the experts of slots p and q if the objective is below `limit` then."""
    r, u, a, b = state.rank[p], state.rank[q], state.slot[p], state.slot[q]
    if r == u or a == b or state.held[u, a] or state.held[r, b]:
        return now
    scenarios = len(state.load)
    total = 0.0
    for s in range(scenarios):
        moved = state.weight[s, a] / state.replicas[a] - state.weight[s, b] / state.replicas[b]
        top = max(state.load[s, r] - moved, state.load[s, u] + moved)
        if state.who[s, _FIRST] != r and state.who[s, _FIRST] != u:
            top = max(top, state.top[s, _FIRST])
        elif state.who[s, _SECOND] != r and state.who[s, _SECOND] != u:
            top = max(top, state.top[s, _SECOND])
        else:
            top = max(top, state.top[s, _THIRD])
        total += _powered(top, squarings)
        if total >= limit * scenarios:
            return now
    for s in range(scenarios):
        moved = state.weight[s, a] / state.replicas[a] - state.weight[s, b] / state.replicas[b]
        state.load[s, r] -= moved
        state.load[s, u] += moved
    state.held[r, a], state.held[u, b] = False, False
    state.held[u, a], state.held[r, b] = True, True
    state.slot[p], state.slot[q] = b, a
    found: float = _refresh(state, squarings)
    return found


@njit(cache=True, nogil=True)
def _try_replace(state: State, p: int, b: int, now: float, limit: float, squarings: int) -> float:
    """Give slot p to expert b if its expert has another and the objective is below `limit` then."""
    r, a = state.rank[p], state.slot[p]
    if state.replicas[a] < 2 or state.held[r, b]:
        return now
    _give(state, p, b)
    found: float = _refresh(state, squarings)
    if found >= limit:
        _give(state, p, a)
        found = _refresh(state, squarings)
    return found


@njit(cache=True, nogil=True)
def _give(state: State, p: int, b: int) -> None:
    """Slot p to expert b; what its expert and b have is shared anew by their replicas."""
    r, a = state.rank[p], state.slot[p]
    _share(state, a, -1.0)
    _share(state, b, -1.0)
    state.slot[p] = b
    state.held[r, a], state.held[r, b] = False, True
    state.replicas[a] -= 1
    state.replicas[b] += 1
    _share(state, a, 1.0)
    _share(state, b, 1.0)


@njit(cache=True, nogil=True)
def _share(state: State, expert: int, sign: float) -> None:
    """Add or take away what the expert puts on its GPUs."""
    for rank in range(state.load.shape[1]):
        if state.held[rank, expert]:
            for s in range(len(state.load)):
                state.load[s, rank] += sign * state.weight[s, expert] / state.replicas[expert]
