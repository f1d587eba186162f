"""Slow answers: every step that can be, one after the other, and plain loops over ranks."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations, product

import numpy as np

from moeprof.placement import Placement

Step = Iterable[Iterable[int]]  # the experts of each token


def step_figures(step: Step, placement: Placement, layer: int = 0) -> np.ndarray:
    """[6] as `COMPARED`, of one step; replicas take whole tokens in turn."""
    experts = [expert for token in step for expert in token]
    slots = [list(np.flatnonzero(placement.physical_to_logical_map[layer] == e)) for e in
             range(placement.experts)]  # fmt: skip
    rank_of = placement.topology.rank_of_slot()
    load = [0] * placement.topology.gpus
    read: list[set[int]] = [set() for _ in load]
    for expert in set(experts):
        for turn in range(experts.count(expert)):
            rank = rank_of[slots[expert][turn % len(slots[expert])]]
            load[rank] += 1
            read[rank].add(expert)
    distinct = [len(found) for found in read]
    busiest = load.index(max(load))
    hottest = max(experts.count(expert) for expert in set(experts))
    return np.array(
        [
            len(set(experts)),
            sum(distinct) / len(load),
            max(distinct),
            distinct[busiest],
            load[busiest],
            hottest,
        ]
    )


def all_even_steps(experts: int, top_k: int, tokens: int) -> list[tuple[tuple[int, ...], ...]]:
    """Every step of `tokens` that each choose `top_k` of `experts`, all as likely."""
    return list(product(combinations(range(experts), top_k), repeat=tokens))
