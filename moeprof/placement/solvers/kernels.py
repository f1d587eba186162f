"""The compiled search for one layer's map. Import this only where one is called.

Replica counts are water-filled (the next replica goes to the expert with the heaviest ones, which
is optimal for the heaviest replica), packed heaviest first, then improved: the busiest GPU swaps
experts with others while that lowers it, and iterated local search (Lourenço, Martin and Stützle
2003, doi:10.1007/0-306-48056-5_11) perturbs the best map by a swap or by moving a replica from one
expert to another. An expert never stands twice on a GPU. Work is bounded by counts, not by time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

_LESS = 1 - 1e-9  # what a change must bring, so that rounding never makes the search run in circles
_SWAPS = 64  # at most, after one perturbation
_WALK = 4  # perturbations without success, on average, before the search is back at its best


class Layer(NamedTuple):
    """One layer's map while it is searched, and what follows from it."""

    weight: NDArray[np.float64]  # [experts] load
    first: NDArray[np.int64]  # [gpus + 1] first slot of each GPU
    rank: NDArray[np.int64]  # [slots] GPU of each slot
    slot: NDArray[np.int64]  # [slots] expert in each slot
    replicas: NDArray[np.int64]  # [experts]
    share: NDArray[np.float64]  # [experts] load of one replica
    held: NDArray[np.bool_]  # [gpus, experts]
    load: NDArray[np.float64]  # [gpus]


@njit(cache=True, nogil=True)
def feasible(count: NDArray[np.int64], first: NDArray[np.int64]) -> bool:
    """Whether replicas fit with no expert twice on a GPU (Gale 1957, Ryser 1957)."""
    ordered = np.sort(count)[::-1]
    need = 0
    for experts in range(1, len(ordered) + 1):
        need += ordered[experts - 1]
        room = 0
        for gpu in range(len(first) - 1):
            room += min(first[gpu + 1] - first[gpu], experts)
        if need > room:
            return False
    return True


@njit(cache=True, nogil=True)
def replicate(
    weight: NDArray[np.float64], first: NDArray[np.int64], even: bool
) -> NDArray[np.int64]:
    """[experts] replicas that make the heaviest one as light as can be, and fit.

    `even` says that all GPUs have the same number of slots: then at most one per GPU is enough.
    """
    gpus = len(first) - 1
    count = np.ones(len(weight), np.int64)
    limit = np.full(len(weight), gpus, np.int64)
    left = first[gpus] - len(weight)
    while left > 0:
        expert = -1
        for other in range(len(weight)):
            if count[other] < limit[other] and (
                expert < 0 or weight[other] * count[expert] > weight[expert] * count[other]
            ):
                expert = other
        count[expert] += 1
        if not even and not feasible(count, first):
            count[expert] -= 1
            limit[expert] = count[expert]
            continue
        left -= 1
    return count


@njit(cache=True, nogil=True)
def pack(layer: Layer) -> None:
    """Fill the slots by `replicas`: heaviest replica first, to the least loaded GPU without it.

    Where that leaves a replica without a GPU, the experts with most replicas go first, each to the
    GPUs with most room, which always ends well.
    """
    heaviest = np.argsort(-layer.share, kind="mergesort")
    if not _deal(layer, heaviest, False):
        _deal(layer, np.argsort(-layer.replicas, kind="mergesort"), True)


@njit(cache=True, nogil=True)
def _deal(layer: Layer, order: NDArray[np.int64], by_room: bool) -> bool:
    """Experts in `order` to GPUs without them; false where one finds no place."""
    gpus = len(layer.load)
    layer.held[:] = False
    layer.load[:] = 0.0
    filled = layer.first[:-1].copy()
    for expert in order:
        for _ in range(layer.replicas[expert]):
            best = -1
            for gpu in range(gpus):
                room = layer.first[gpu + 1] - filled[gpu]
                if room == 0 or layer.held[gpu, expert]:
                    continue
                if best >= 0 and by_room:
                    more = room - (layer.first[best + 1] - filled[best])
                    if more < 0 or (more == 0 and layer.load[gpu] >= layer.load[best]):
                        continue
                elif best >= 0 and layer.load[gpu] >= layer.load[best]:
                    continue
                best = gpu
            if best < 0:
                return False
            layer.slot[filled[best]] = expert
            filled[best] += 1
            layer.held[best, expert] = True
            layer.load[best] += layer.share[expert]
    return True


@njit(cache=True, nogil=True)
def weigh(layer: Layer) -> None:
    """The loads of all GPUs anew."""
    layer.load[:] = 0.0
    for place in range(len(layer.slot)):
        layer.load[layer.rank[place]] += layer.share[layer.slot[place]]


@njit(cache=True, nogil=True)
def may_swap(layer: Layer, here: int, there: int) -> bool:
    """Whether the experts of two slots can change places."""
    gpu, other = layer.rank[here], layer.rank[there]
    return (
        gpu != other
        and not layer.held[other, layer.slot[here]]
        and not layer.held[gpu, layer.slot[there]]
    )


@njit(cache=True, nogil=True)
def swap(layer: Layer, here: int, there: int) -> None:
    """The experts of two slots change places."""
    gpu, other = layer.rank[here], layer.rank[there]
    given, taken = layer.slot[here], layer.slot[there]
    less = layer.share[given] - layer.share[taken]
    layer.load[gpu] -= less
    layer.load[other] += less
    layer.slot[here], layer.slot[there] = taken, given
    layer.held[gpu, given], layer.held[gpu, taken] = False, True
    layer.held[other, given], layer.held[other, taken] = True, False


@njit(cache=True, nogil=True)
def may_replace(layer: Layer, place: int, expert: int) -> bool:
    """Whether a slot's expert has other replicas, and `expert` is not on its GPU."""
    return layer.replicas[layer.slot[place]] > 1 and not layer.held[layer.rank[place], expert]


@njit(cache=True, nogil=True)
def replace(layer: Layer, place: int, expert: int) -> None:
    """A slot's expert loses this replica and `expert` gains one."""
    gpu, before = layer.rank[place], layer.slot[place]
    layer.slot[place] = expert
    layer.held[gpu, before], layer.held[gpu, expert] = False, True
    layer.replicas[before] -= 1
    layer.replicas[expert] += 1
    for changed in (before, expert):
        layer.share[changed] = layer.weight[changed] / layer.replicas[changed]
    weigh(layer)


@njit(cache=True, nogil=True)
def relieve(layer: Layer, swaps: int, enough: float) -> None:
    """Best swaps of the busiest GPU, `swaps` at most, while they help and it exceeds `enough`."""
    for _ in range(swaps):
        busiest = np.argmax(layer.load)
        best = layer.load[busiest] * _LESS
        if best <= enough:
            return
        give = take = -1
        for here in range(layer.first[busiest], layer.first[busiest + 1]):
            share = layer.share[layer.slot[here]]
            for there in range(len(layer.slot)):
                less = share - layer.share[layer.slot[there]]
                worse = max(layer.load[busiest] - less, layer.load[layer.rank[there]] + less)
                if worse < best and may_swap(layer, here, there):
                    best, give, take = worse, here, there
        if give < 0:
            return
        swap(layer, give, take)


@njit(cache=True, nogil=True)
def draw(state: NDArray[np.uint64], below: int) -> int:
    """A number from 0 to below - 1 (xorshift64, Marsaglia 2003, doi:10.18637/jss.v008.i14)."""
    x = state[0]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    state[0] = x
    return int(np.int64((x >> np.uint64(11)) % np.uint64(below)))


@njit(cache=True, nogil=True)
def perturb(layer: Layer, state: NDArray[np.uint64]) -> bool:
    """A random change that concerns the busiest GPU; false where the one drawn is not allowed.

    A third each: one of its experts gains a replica, one of its slots changes its expert, one of
    its experts changes places.
    """
    busiest = np.argmax(layer.load)
    width = layer.first[busiest + 1] - layer.first[busiest]
    here = layer.first[busiest] + draw(state, width)
    there = draw(state, len(layer.slot))
    kind = draw(state, 3)
    if kind == 0 and may_replace(layer, there, layer.slot[here]):
        replace(layer, there, layer.slot[here])
        return True
    expert = draw(state, len(layer.weight))
    if kind == 1 and may_replace(layer, here, expert):
        replace(layer, here, expert)
        return True
    if may_swap(layer, here, there):
        swap(layer, here, there)
        return True
    return False


@njit(cache=True, nogil=True)
def copy_map(source: Layer, target: Layer) -> None:
    """What a search changes, from one layer to another, in loops that compile in no time."""
    for slot in range(len(source.slot)):
        target.slot[slot] = source.slot[slot]
    for expert in range(len(source.replicas)):
        target.replicas[expert] = source.replicas[expert]
        target.share[expert] = source.share[expert]
    for rank in range(len(source.load)):
        target.load[rank] = source.load[rank]
        for expert in range(source.held.shape[1]):
            target.held[rank, expert] = source.held[rank, expert]


@njit(cache=True, nogil=True)
def improve(layer: Layer, rounds: int, enough: float, seed: int) -> None:
    """Iterated local search from the map at hand, `rounds` perturbations at most.

    Stops early once the busiest GPU is at `enough`, a lower bound or a target.
    """
    state = np.array([np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)])
    relieve(layer, 100 * len(layer.slot), enough)
    trial = Layer(
        layer.weight,
        layer.first,
        layer.rank,
        layer.slot.copy(),
        layer.replicas.copy(),
        layer.share.copy(),
        layer.held.copy(),
        layer.load.copy(),
    )
    for _ in range(rounds):
        if layer.load.max() <= enough:
            return
        if not perturb(trial, state):
            continue
        relieve(trial, _SWAPS, enough)
        if trial.load.max() < layer.load.max() * _LESS:
            copy_map(trial, layer)
        elif draw(state, _WALK) == 0:  # walk on from worse maps for a while
            copy_map(layer, trial)
