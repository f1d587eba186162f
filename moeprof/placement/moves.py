"""From the map in use to another one: which experts must be copied, and how long that takes.

GPUs with as many slots are alike to a balance, so a new map may be handed to them in any order:
`aligned` takes the one that needs the fewest copies, an assignment problem for each layer (Kuhn
1955), GPUs within a node and nodes as a whole, so traffic between nodes stays what it was.
A copy comes from a GPU of the same node where one holds the expert, else over the network; every
GPU receives one after the other, and the slowest one's seconds are the cost:

    seconds = max over GPUs of sum over links of received bytes / link rate
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.placement.placement import Placement
from moeprof.placement.topology import Topology
from moeprof.quantity import Provenance, Quantity
from moeprof.result import Result


@dataclass(frozen=True)
class Moves(Result):
    """What changes between two maps, over all layers."""

    slots: int  # experts that a GPU holds now and did not before
    between_nodes: int  # of them, those that no GPU of the node held
    bytes: int | None  # None without an expert's size
    seconds: Quantity | None  # None without size or link rates


def aligned(placement: Placement, before: Placement) -> Placement:
    """`placement` with its GPUs and slots in the order that moves the fewest experts.

    Loads are those of `placement` but for the order of GPUs. Raises InputError where the two maps
    are not of the same layers, experts and topology.
    """
    _refuse_other(placement, before)
    rows = [_aligned_row(placement, before, layer) for layer in range(placement.layers)]
    return Placement(
        np.stack(rows),
        placement.experts,
        placement.topology,
        placement.allow_duplicates,
        placement.expert_bytes,
    )


def count_moves(placement: Placement, before: Placement, expert_bytes: int | None = None) -> Moves:
    """What copying from `before` to `placement` takes; `expert_bytes` is one expert's in a layer.

    Raises InputError where the two maps are not of the same layers, experts and topology.
    """
    _refuse_other(placement, before)
    topology = placement.topology
    new = (placement.copies_on_rank > 0) & (before.copies_on_rank == 0)
    in_node = _by_node(before.copies_on_rank > 0, topology)[:, topology.node_of_rank()]
    near, far = (new & in_node).sum(axis=(0, 2)), (new & ~in_node).sum(axis=(0, 2))
    return Moves(
        slots=int(new.sum()),
        between_nodes=int(far.sum()),
        bytes=None if expert_bytes is None else int(new.sum()) * expert_bytes,
        seconds=None if expert_bytes is None else _seconds(near, far, expert_bytes, topology),
    )


def _refuse_other(placement: Placement, before: Placement) -> None:
    here, there = placement.copies_on_rank.shape, before.copies_on_rank.shape
    if here != there or placement.topology.slots != before.topology.slots:
        raise InputError(f"maps of {here} and {there} layers, GPUs and experts: moves need one")


def _by_node(held: NDArray[np.bool_], topology: Topology) -> NDArray[np.bool_]:
    """[layers, nodes, experts] whether any GPU of a node holds an expert."""
    layers, _, experts = held.shape
    grouped = held.reshape(layers, topology.nodes, -1, experts)
    by_node: NDArray[np.bool_] = np.logical_or.reduce(grouped, axis=2)
    return by_node


def _seconds(
    near: NDArray[np.int64], far: NDArray[np.int64], expert_bytes: int, topology: Topology
) -> Quantity | None:
    """The slowest GPU's time to receive; None where a rate that is needed is not known."""
    used = [
        (count * expert_bytes, rate)
        for count, rate in (
            (near, topology.scale_up_bytes_per_s),
            (far, topology.network_bytes_per_s),
        )
        if count.any()
    ]
    if any(rate is None for _, rate in used):
        return None
    rates = [(size, rate) for size, rate in used if rate is not None]
    if not rates:
        return Quantity(0.0, "s", Provenance.SPECIFIED, source="nothing moves")
    return Quantity(
        _slowest([(size, rate.value) for size, rate in rates]),
        "s",
        max((rate.provenance for _, rate in rates), key=lambda p: p.rank),
        *_band(rates),
        "; ".join(rate.source for _, rate in rates),
    )


def _slowest(parts: list[tuple[NDArray[np.int64], float]]) -> float:
    return float(np.sum([size / rate for size, rate in parts], axis=0).max())


def _band(
    rates: list[tuple[NDArray[np.int64], Quantity]],
) -> tuple[float | None, float | None]:
    """Fastest and slowest, where every link's band is known."""
    fast = [(size, rate.high) for size, rate in rates if rate.high]
    slow = [(size, rate.low) for size, rate in rates if rate.low]
    if len(fast) < len(rates) or len(slow) < len(rates):
        return None, None
    return _slowest(fast), _slowest(slow)


def _aligned_row(placement: Placement, before: Placement, layer: int) -> NDArray[np.int64]:
    """[slots] one layer of the map, handed to the GPUs that hold most of it already."""
    topology = placement.topology
    new, old = placement.copies_on_rank[layer] > 0, before.copies_on_rank[layer] > 0
    source = _best_order(new.astype(np.int64) @ old.T.astype(np.int64), topology)
    first, table = topology.first_slot(), placement.physical_to_logical_map[layer]
    row: NDArray[np.int64] = np.empty_like(table)
    for rank, taken in enumerate(source):
        here = slice(first[rank], first[rank + 1])
        held = before.physical_to_logical_map[layer, here].tolist()
        row[here] = _in_their_slots(table[first[taken] : first[taken + 1]].tolist(), held)
    return row


def _in_their_slots(new: list[int], held: list[int]) -> list[int]:
    """`new` in an order that leaves what stays where it is."""
    left, row = list(new), [-1] * len(held)
    for slot, expert in enumerate(held):
        if expert in left:
            left.remove(expert)
            row[slot] = expert
    return [left.pop(0) if expert < 0 else expert for expert in row]


def _best_order(overlap: NDArray[np.int64], topology: Topology) -> NDArray[np.int64]:
    """[gpus] which GPU of the new map each GPU takes over; `overlap` [new, old] experts kept."""
    size, nodes = topology.gpus_per_node, topology.nodes
    slots = np.array(topology.slots)
    possible = slots[:, None] == slots[None, :]
    blocks = {
        (new, old): _match(
            overlap[a : a + size, b : b + size], possible[a : a + size, b : b + size]
        )
        for new, a in enumerate(range(0, topology.gpus, size))
        for old, b in enumerate(range(0, topology.gpus, size))
    }
    worth = np.array([[blocks[new, old][0] for old in range(nodes)] for new in range(nodes)])
    _, order = _match(worth, worth >= 0)
    source = np.empty(topology.gpus, np.int64)
    for old, new in enumerate(order):
        source[old * size : (old + 1) * size] = new * size + blocks[new, old][1]
    return source


def _match(worth: NDArray[np.int64], possible: NDArray[np.bool_]) -> tuple[int, NDArray[np.int64]]:
    """The worth of the best matching and, by column, its row; -1 and anything where none is."""
    from scipy.optimize import linear_sum_assignment

    forbidden = -(int(worth.max(initial=0)) + 1) * (len(worth) + 1)
    rows, columns = linear_sum_assignment(np.where(possible, worth, forbidden), maximize=True)
    if not possible[rows, columns].all():
        return -1, np.arange(len(worth))
    return int(worth[rows, columns].sum()), rows[np.argsort(columns)]
