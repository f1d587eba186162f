"""One cache while it is replayed: what the compiled loop works on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.events import EventChunk
from moeprof.cache.policies import load_policy
from moeprof.cache.policies.driver import Rules, Tally, compiled
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, new_shelf
from moeprof.cache.requests import Cell


class Running:
    """A cell over the layers that share one cache; feed it the chunks in order."""

    def __init__(
        self,
        cell: Cell,
        *,
        layers: int,
        experts: int,
        slots: int,
        expert_bytes: NDArray[np.int64] | None,  # [layers]
        share: float,  # of all layers
        first: int,
        steps: int,  # to keep the counts of, 0 for none
        uses: NDArray[np.int64] | None,  # [layers, experts] in the window that is learned on
        most: int = 0,  # misses of a layer to keep the experts of, 0 for none
    ) -> None:
        policy = load_policy(cell.policy)
        setup = Setup(layers, experts, min(slots, layers * experts), cell.seed)
        size, capacity = np.ones(setup.items, np.int64), slots
        if cell.budget_bytes is not None and expert_bytes is not None:
            size, capacity = np.repeat(expert_bytes, experts), int(cell.budget_bytes * share)
        self._loop = compiled(policy)
        contract = cell.contract
        self._rules = Rules(contract.sequential, contract.by_last_use, contract.evict_after)
        self._shelf = new_shelf(size, capacity)
        self._state = policy.new_state(setup)
        self._foresight = getattr(policy, "FORESIGHT", False)
        self.tally = Tally(
            np.zeros((layers, steps), np.int64),
            np.zeros((layers, steps), np.int64),
            np.zeros((layers, 3), np.int64),
            np.zeros(layers, np.int64),
            np.array([first], np.int64),
            np.zeros((layers, most), np.uint16),
            np.zeros(layers, np.int64),
        )
        if uses is not None:
            _fill(self._shelf, uses.ravel())

    def take(self, chunk: EventChunk, future: NDArray[np.int32] | None) -> None:
        """Replay the steps of `chunk`; `future` as `foresight.next_steps` returns it."""
        layers, _, k = chunk.experts.shape
        self._loop(
            chunk.experts,
            chunk.recorded,
            future if self._foresight else np.zeros((layers, 0, k), np.int32),
            chunk.starts,
            chunk.first_event,
            self._rules,
            self._shelf,
            self._state,
            self.tally,
        )


def _fill(shelf: Shelf, uses: NDArray[np.int64]) -> None:
    """Make the most used items resident, as many as fit, and nothing after them."""
    order = np.argsort(-uses, kind="stable")
    fitting = order[np.cumsum(shelf.size[order]) <= shelf.capacity[0]]
    shelf.resident[fitting] = 1
    shelf.free[0] = 0
