"""Maps that look at no load: experts in order of id, dealt round, or at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.placement.solvers.problem import Map, Problem
from moeprof.placement.solvers.search import packed


def linear(problem: Problem) -> Map:
    """Slot s holds expert s mod E: what engines start with. Redundant experts are the first ones.

    A GPU's slots are consecutive, and no more than E: so none holds an expert twice.
    """
    return _every_layer(problem, np.arange(problem.topology.slots_in_all) % problem.experts)


def round_robin(problem: Problem) -> Map:
    """Expert e goes to GPU e mod G where there is room, else to the next; redundant ones go on so.

    A GPU that holds the expert already is passed over.
    """
    free = list(problem.topology.slots)
    held: list[list[int]] = [[] for _ in free]
    rank = 0
    for expert in (np.arange(sum(free)) % problem.experts).tolist():
        turns = ((rank + turn) % len(free) for turn in range(len(free)))
        found = next((gpu for gpu in turns if free[gpu] and expert not in held[gpu]), None)
        if found is None:  # the last slots are where the last experts are
            return linear(problem)
        held[found].append(expert)
        free[found] -= 1
        rank = found + 1
    return _every_layer(problem, np.array([expert for experts in held for expert in experts]))


def random(problem: Problem) -> Map:
    """Experts at random, each with as many replicas as the next or one more; seeded."""
    draw = np.random.default_rng(problem.seed)
    each, more = divmod(problem.topology.slots_in_all, problem.experts)
    rows = []
    for _ in range(problem.layers):
        count = np.full(problem.experts, each)
        count[draw.permutation(problem.experts)[:more]] += 1
        rows.append(packed(draw.random(problem.experts) * count, count, problem.topology).slot)
    return np.array(rows)


def _every_layer(problem: Problem, row: NDArray[np.int64]) -> Map:
    return np.tile(row, (problem.layers, 1))
