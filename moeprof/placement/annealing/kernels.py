"""The compiled annealer of one layer's map. Import this only where one is called.

A proposal is two experts that change places, or a slot whose expert gives way to another. It is
made, its cost before and after is compared, and it is taken back where it is not accepted: so there
is no second formula for a difference. Work is bounded by the number of proposals.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

_WARM_UP = 100  # proposals that set the temperature; of these only what improves is accepted
_HEAT = 0.1  # first temperature over the mean change of cost in the warm-up


class Chain(NamedTuple):
    """One layer's map while it is annealed. Places are the GPUs, then the nodes."""

    parts: NDArray[np.float64]  # [experts, windows] load over the window's mean of a GPU
    weight: NDArray[np.float64]  # [windows], 1 in all
    rank: NDArray[np.int64]  # [slots] GPU of each slot
    node: NDArray[np.int64]  # [gpus] place of its node
    slot: NDArray[np.int64]  # [slots] expert in each slot
    replicas: NDArray[np.int64]  # [experts]
    copies: NDArray[np.int64]  # [places, experts]
    load: NDArray[np.float64]  # [gpus, windows]
    home: NDArray[np.bool_]  # [gpus, experts] of the map in use
    tokens: NDArray[np.int64]  # [tokens, top_k] experts of a sample
    first: NDArray[np.int64]  # [experts + 1] where an expert's tokens start in `users`
    users: NDArray[np.int64]  # tokens that use each expert


class Prices(NamedTuple):
    """What the parts of the cost weigh."""

    floor: float  # load over the mean up to which a GPU costs nothing
    balance: float  # of (load over the mean - floor)^4, mean over GPUs, weighted over windows
    place: NDArray[np.float64]  # [places] of a token that reaches the place, mean over tokens
    move: float  # of an expert on a GPU that did not hold it


@njit(cache=True, nogil=True)
def _balance_cost(chain: Chain, prices: Prices, gpu: int) -> float:
    cost = 0.0
    for window in range(chain.load.shape[1]):
        over = chain.load[gpu, window] - prices.floor
        if over > 0:
            cost += chain.weight[window] * over * over * over * over
    return float(prices.balance * cost / len(chain.node))


@njit(cache=True, nogil=True)
def _reach(chain: Chain, token: int, place: int) -> float:
    """The chance that the token comes to the place, its experts' replicas chosen at random."""
    missed = 1.0
    for choice in range(chain.tokens.shape[1]):
        expert = chain.tokens[token, choice]
        missed *= 1.0 - chain.copies[place, expert] / chain.replicas[expert]
    return float(1.0 - missed)


@njit(cache=True, nogil=True)
def _traffic_cost(chain: Chain, prices: Prices, place: int, one: int, other: int) -> float:
    """Of the tokens that use one expert or the other, each once."""
    if prices.place[place] == 0.0 or len(chain.tokens) == 0:
        return 0.0
    reached = 0.0
    for i in range(chain.first[one], chain.first[one + 1]):
        reached += _reach(chain, chain.users[i], place)
    for i in range(chain.first[other], chain.first[other + 1]):
        both = False
        for choice in range(chain.tokens.shape[1]):
            both |= chain.tokens[chain.users[i], choice] == one
        if not both:
            reached += _reach(chain, chain.users[i], place)
    return float(prices.place[place] * reached / len(chain.tokens))


@njit(cache=True, nogil=True)
def _cost(
    chain: Chain, prices: Prices, concerned: NDArray[np.bool_], one: int, other: int
) -> float:
    """The part of the cost that two experts have at the concerned places."""
    gpus = len(chain.node)
    cost = 0.0
    for place in range(len(concerned)):
        if not concerned[place]:
            continue
        cost += _traffic_cost(chain, prices, place, one, other)
        if place < gpus:
            cost += _balance_cost(chain, prices, place)
            for expert in (one, other):
                if chain.copies[place, expert] > 0 and not chain.home[place, expert]:
                    cost += prices.move
    return cost


@njit(cache=True, nogil=True)
def _put(chain: Chain, place: int, expert: int) -> None:
    """`expert` into a slot whose expert goes; loads follow from `_weigh`."""
    gpu, before = chain.rank[place], chain.slot[place]
    chain.slot[place] = expert
    for where in (gpu, chain.node[gpu]):
        chain.copies[where, before] -= 1
        chain.copies[where, expert] += 1
    chain.replicas[before] -= 1
    chain.replicas[expert] += 1


@njit(cache=True, nogil=True)
def _weigh(chain: Chain, concerned: NDArray[np.bool_], one: int, other: int, sign: float) -> None:
    """Add two experts' load to, or take it from, the concerned GPUs that hold them."""
    for gpu in range(len(chain.node)):
        if not concerned[gpu]:
            continue
        for expert in (one, other):
            if chain.copies[gpu, expert] > 0:
                share = sign * chain.copies[gpu, expert] / chain.replicas[expert]
                for window in range(chain.load.shape[1]):
                    chain.load[gpu, window] += share * chain.parts[expert, window]


@njit(cache=True, nogil=True)
def _change(chain: Chain, concerned: NDArray[np.bool_], here: int, there: int, expert: int) -> None:
    """Two slots exchange their experts, or, with there = -1, one takes `expert`."""
    given = chain.slot[here]
    other = expert if there < 0 else chain.slot[there]
    _weigh(chain, concerned, given, other, -1.0)
    _put(chain, here, other)
    if there >= 0:
        _put(chain, there, given)
    _weigh(chain, concerned, given, other, 1.0)


@njit(cache=True, nogil=True)
def _allowed(chain: Chain, here: int, there: int, expert: int) -> bool:
    gpu, given = chain.rank[here], chain.slot[here]
    if there < 0:
        return bool(chain.replicas[given] > 1 and chain.copies[gpu, expert] == 0)
    other, taken = chain.rank[there], chain.slot[there]
    return bool(chain.copies[gpu, taken] == 0 and chain.copies[other, given] == 0)


@njit(cache=True, nogil=True)
def _mark(chain: Chain, here: int, there: int, expert: int, concerned: NDArray[np.bool_]) -> None:
    """The places where a change shows: both GPUs and nodes, or all that hold what is replaced."""
    concerned[:] = False
    if there < 0:
        for place in range(len(concerned)):
            concerned[place] = (
                chain.copies[place, expert] > 0 or chain.copies[place, chain.slot[here]] > 0
            )
    elif chain.node[chain.rank[here]] != chain.node[chain.rank[there]]:
        concerned[chain.node[chain.rank[there]]] = True
        concerned[chain.node[chain.rank[here]]] = True
    concerned[chain.rank[here]] = True
    concerned[chain.node[chain.rank[here]]] |= there < 0
    if there >= 0:
        concerned[chain.rank[there]] = True


@njit(cache=True, nogil=True)
def anneal(chain: Chain, prices: Prices, proposals: int, seed: int) -> NDArray[np.int64]:
    """[slots] the best map met: the temperature falls in a straight line to 0."""
    np.random.seed(seed)
    slots, experts = len(chain.slot), len(chain.replicas)
    concerned = np.zeros(len(chain.copies), np.bool_)
    best, gain, best_gain = chain.slot.copy(), 0.0, 0.0
    tried, sizes, heat = 0, 0.0, 0.0
    for step in range(proposals):
        here, there = np.random.randint(slots), np.random.randint(slots)
        expert = np.random.randint(experts)
        if slots > experts and np.random.random() < 0.3:
            there = -1
        if not _allowed(chain, here, there, expert):
            continue
        given = chain.slot[here]
        other = expert if there < 0 else chain.slot[there]
        _mark(chain, here, there, expert, concerned)
        before = _cost(chain, prices, concerned, given, other)
        _change(chain, concerned, here, there, expert)
        rise = _cost(chain, prices, concerned, given, other) - before
        if tried < _WARM_UP:
            tried, sizes = tried + 1, sizes + abs(rise)
            heat = _HEAT * sizes / tried
        cold = tried < _WARM_UP or heat == 0.0
        bound = 0.0 if cold else -heat * (1 - step / proposals) * np.log(np.random.random())
        if rise > bound:
            _change(chain, concerned, here, there, given)
            continue
        gain -= rise
        if gain > best_gain + 1e-12:
            best_gain = gain
            for slot in range(len(best)):  # an assignment of arrays takes seconds to compile
                best[slot] = chain.slot[slot]
    return best
