"""Best of several runs, in turn, so that a slow moment of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable


def best_of(rounds: int, **tasks: Callable[[], object]) -> dict[str, float]:
    """Seconds of the fastest of `rounds` runs of each task, run in turn."""
    best = dict.fromkeys(tasks, float("inf"))
    for _ in range(rounds):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            best[name] = min(best[name], time.perf_counter() - started)
    return best
