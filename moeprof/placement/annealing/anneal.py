"""One layer's map toward an aim: even loads in each window, few places a token, few moves.

With x[g, w] the load of GPU g in window w over the mean of GPUs, h[g] and h[n] the share of tokens
that use an expert on GPU g or in node n, and moved the experts on GPUs that did not hold them,

    cost = balance * mean over g and w of max(0, x[g, w] - floor)^4, half of it of the windows' sum
           + gpus * sum over g of h[g] + nodes * sum over n of h[n] + moves * moved / slots

is annealed (Kirkpatrick, Gelatt and Vecchi 1983, doi:10.1126/science.220.4598.671). The fourth
power stands for the maximum, which is what GPUs wait for; the mean over windows stands for windows
to come, as in sample average approximation (Shapiro, Dentcheva and Ruszczynski, Lectures on
Stochastic Programming, 2009, chapter 5). Windows are few and noisy, so their sum counts as much as
all of them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moeprof.placement.topology import Topology

if TYPE_CHECKING:
    from moeprof.placement.annealing.kernels import Chain

SAMPLE = 1024  # tokens that stand for all in the traffic of a layer


@dataclass(frozen=True)
class Aim:
    """The weights of the cost above."""

    floor: float = 0.0
    balance: float = 1.0
    gpus: float = 0.0
    nodes: float = 0.0
    moves: float = 0.0


def anneal_map(
    slot: NDArray[np.int64],
    windows: NDArray[np.float64],
    topology: Topology,
    aim: Aim,
    *,
    proposals: int,
    seed: int,
    tokens: NDArray[np.integer] | None = None,
    before: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """[slots] a better map than `slot`, or the same.

    `windows` [windows, experts] are loads; `tokens` [tokens, top_k] the ids that traffic is counted
    on, evenly thinned to `SAMPLE`; `before` [slots] the map that moves are counted from.
    """
    from moeprof.placement.annealing.kernels import Prices, anneal

    chain = _chain(slot, windows, topology, tokens, before)
    place = np.repeat([aim.gpus, aim.nodes], [topology.gpus, topology.nodes]).astype(np.float64)
    move = aim.moves / topology.slots_in_all if before is not None else 0.0
    prices = Prices(float(aim.floor), float(aim.balance), place, move)
    annealed: NDArray[np.int64] = anneal(chain, prices, proposals, seed)
    return annealed


def _chain(
    slot: NDArray[np.int64],
    windows: NDArray[np.float64],
    topology: Topology,
    tokens: NDArray[np.integer] | None,
    before: NDArray[np.int64] | None,
) -> Chain:
    from moeprof.placement.annealing.kernels import Chain

    experts, gpus = windows.shape[1], topology.gpus
    used = windows[windows.any(axis=1)]
    used = np.vstack([used, used.sum(axis=0)])
    weight = np.append(np.full(len(used) - 1, 0.5 / (len(used) - 1)), 0.5)
    parts = np.ascontiguousarray((used / used.sum(axis=1, keepdims=True) * gpus).T)
    rank, node = topology.rank_of_slot(), topology.node_of_rank() + gpus
    copies = np.zeros((gpus + topology.nodes, experts), np.int64)
    np.add.at(copies, (rank, slot), 1)
    np.add.at(copies, (node[rank], slot), 1)
    replicas = np.bincount(slot, minlength=experts)
    home = np.zeros((gpus, experts), np.bool_)
    home[rank, slot if before is None else before] = True
    sample = _thinned(tokens)
    user = np.repeat(np.arange(len(sample)), sample.shape[1])
    order = np.argsort(sample.ravel(), kind="stable")
    first = np.searchsorted(sample.ravel()[order], np.arange(experts + 1))
    load = (copies[:gpus] / replicas) @ parts
    users = user[order]
    return Chain(
        parts, weight, rank, node, slot.copy(), replicas, copies, load, home, sample, first, users
    )


def _thinned(tokens: NDArray[np.integer] | None) -> NDArray[np.int64]:
    """[at most SAMPLE, top_k] of `tokens`, evenly spaced."""
    if tokens is None or not len(tokens):
        return np.zeros((0, 1), np.int64)
    places = np.arange(min(SAMPLE, len(tokens))) * len(tokens) // min(SAMPLE, len(tokens))
    return tokens[places].astype(np.int64)
