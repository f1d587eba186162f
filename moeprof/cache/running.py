"""One cache while it is replayed: what the compiled loop works on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.events import EventChunk
from moeprof.cache.placements import placed
from moeprof.cache.policies import load_policy
from moeprof.cache.policies.driver import Tally, compiled
from moeprof.cache.policies.names import PLACEMENTS
from moeprof.cache.policies.serving import BY_ID, FIRST_USE, LAST_USE, Rules, Source
from moeprof.cache.policies.setup import Setup
from moeprof.cache.policies.shelf import Shelf, new_shelf
from moeprof.cache.requests import Cell
from moeprof.errors import InputError

_ORDERS = {"first use": FIRST_USE, "last use": LAST_USE, "id": BY_ID}


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
        first: int,
        steps: int,  # to keep the counts of, 0 for none
        uses: NDArray[np.int64] | None,  # [layers, experts] in the window that is learned on
        capacity_bytes: int | None = None,  # of this cache, where capacity counts in bytes
        kinds: NDArray[np.uint8] | None = None,  # [steps] `driver.PREFILL` and `driver.FRESH`
        most: int = 0,  # misses of a layer to keep the experts of, 0 for none
    ) -> None:
        policy = load_policy(cell.rules)
        setup = Setup(layers, experts, min(slots, layers * experts), cell.seed)
        size, capacity = np.ones(setup.items, np.int64), slots
        if capacity_bytes is not None and expert_bytes is not None:
            size, capacity = np.repeat(expert_bytes, experts), capacity_bytes
        contract = cell.contract
        self._loop = compiled(policy, contract.serving)
        self._rules = Rules(_ORDERS[contract.order], cell.inserts, contract.sequential)
        self._shelf = new_shelf(size, capacity)
        self._state = policy.new_state(setup)
        self._members = np.empty(experts, np.int64)
        self._kinds = kinds
        self._foresight = getattr(policy, "FORESIGHT", False)
        self._gates = getattr(policy, "READS_GATES", False)
        self.tally = Tally(
            np.zeros((layers, steps), np.int64),
            np.zeros((layers, steps), np.int64),
            np.zeros((layers, 3), np.int64),
            np.zeros(layers, np.int64),
            np.array([first], np.int64),
            np.zeros((layers, most), np.uint16),
            np.zeros(layers, np.int64),
        )
        if cell.fitted in PLACEMENTS:
            _fill(self._shelf, placed(cell.fitted, layers, experts, setup.slots))
        elif uses is not None:
            _fill(self._shelf, np.argsort(-uses.ravel(), kind="stable"))

    def take(
        self,
        chunk: EventChunk,
        future: NDArray[np.int32] | None,
        gates: NDArray[np.float32] | None = None,
    ) -> None:
        """Replay the steps of `chunk`; `future` as `foresight.next_steps` returns it.

        Raises InputError where the policy reads gate weights and is given none.
        """
        layers, _, k = chunk.experts.shape
        steps = len(chunk.starts) - 1
        kinds = np.zeros(steps, np.uint8)
        if self._kinds is not None:
            kinds = self._kinds[chunk.first_event : chunk.first_event + steps]
        if self._gates and gates is None:
            raise InputError("a policy that reads gate weights has none to read here")
        nothing = (layers, 0, k)
        if future is None or not self._foresight:
            future = np.zeros(nothing, np.int32)
        if gates is None or not self._gates:
            gates = np.zeros(nothing, np.float32)
        self._loop(
            Source(chunk.experts, chunk.recorded, future, gates),
            chunk.starts,
            kinds,
            chunk.first_event,
            self._rules,
            self._shelf,
            self._state,
            self.tally,
            self._members,
        )


def _fill(shelf: Shelf, order: NDArray[np.int64]) -> None:
    """Make the first of `order` resident, as many as fit, and nothing after them."""
    fitting = order[np.cumsum(shelf.size[order]) <= shelf.capacity[0]]
    shelf.resident[fitting] = 1
    shelf.free[0] = 0
