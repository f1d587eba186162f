"""When requests reach the engine: at given times, or whenever another has finished."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from math import inf

from moeprof.errors import InputError
from moeprof.projection.serving.requests import Request


class Arrivals:
    """Open loop: each request at its `arrival_s`. Closed loop: `concurrency` in flight at a time.

    In the closed loop the first `concurrency` arrive at 0 s and each of the others when one
    finishes, as `benchmark_serving.py --max-concurrency C --request-rate inf` sends them.
    """

    def __init__(self, requests: Iterable[Request], concurrency: int | None) -> None:
        if concurrency is not None and concurrency < 1:
            raise InputError(f"concurrency is {concurrency}, it must be at least 1")
        order = requests if concurrency else sorted(requests, key=lambda r: r.arrival_s)
        self._pending = deque(order)
        self._places = concurrency

    @property
    def next_s(self) -> float:
        """When the next request comes whatever finishes; infinite where none will."""
        return self._pending[0].arrival_s if self._pending and self._places is None else inf

    def due(self, clock_s: float) -> Iterable[Request]:
        """The requests that have arrived by `clock_s`, each once."""
        if self._places is None:
            while self.next_s <= clock_s:
                yield self._pending.popleft()
        while self._places and self._pending:
            self._places -= 1
            yield replace(self._pending.popleft(), arrival_s=clock_s)

    def finished(self, requests: int) -> None:
        """That many requests are done: in the closed loop others take their places."""
        if self._places is not None:
            self._places += requests
