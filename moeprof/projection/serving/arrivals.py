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
    finishes, as `benchmark_serving.py --max-concurrency C --request-rate inf` sends them. All enter
    the engine `delay_s` after they arrived.
    """

    def __init__(
        self, requests: Iterable[Request], concurrency: int | None, delay_s: float = 0.0
    ) -> None:
        if concurrency is not None and concurrency < 1:
            raise InputError(f"concurrency is {concurrency}, it must be at least 1")
        if not 0 <= delay_s < inf:
            raise InputError(f"a delay of {delay_s} s before the engine: it must be at least 0")
        self._delay_s = delay_s
        self._held = deque(requests)  # until another finishes
        self._sent: deque[Request] = deque()
        if concurrency is None:
            self._sent.extend(sorted(self._held, key=lambda request: request.arrival_s))
            self._held.clear()
        else:
            self.replace_finished(concurrency, 0.0)

    @property
    def next_s(self) -> float:
        """When the next of those on their way enters; infinite where none is."""
        return self._sent[0].arrival_s + self._delay_s if self._sent else inf

    def due(self, clock_s: float) -> Iterable[Request]:
        """The requests that have entered by `clock_s`, each once."""
        while self.next_s <= clock_s:
            yield self._sent.popleft()

    def replace_finished(self, requests: int, clock_s: float) -> None:
        """That many are done at `clock_s`: in the closed loop as many others are sent."""
        for _ in range(min(requests, len(self._held))):
            self._sent.append(replace(self._held.popleft(), arrival_s=clock_s))
