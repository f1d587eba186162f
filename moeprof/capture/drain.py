"""The writer thread and the bounded queue before it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

TICK_SECONDS = 0.2


class Drain:
    """Hands items to `handle` in a thread of its own, in order, and calls `tick` in between.

    `offer` never blocks: it refuses what would take the bytes that wait beyond the limit.
    `handle` and `tick` deal with their own errors.
    """

    def __init__(
        self, handle: Callable[[Any], None], tick: Callable[[], None], max_pending_bytes: int
    ) -> None:
        self._handle = handle
        self._tick = tick
        self._limit = max_pending_bytes
        self._queue: queue.SimpleQueue[tuple[Any, int] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pending = 0
        self._thread = threading.Thread(target=self._run, name="moeprof-writer", daemon=True)
        self._thread.start()

    @property
    def pending_bytes(self) -> int:
        """Bytes that were accepted and are not handled yet."""
        return self._pending

    def offer(self, item: Any, nbytes: int = 0, *, reserve: int = 0) -> bool:
        """Queue `item` if that leaves `reserve` bytes of the limit free; False if refused.

        Items of no bytes are always accepted.
        """
        if nbytes:
            with self._lock:
                if self._pending + nbytes > self._limit - reserve:
                    return False
                self._pending += nbytes
        self._queue.put((item, nbytes))
        return True

    def close(self) -> None:
        """Handle all that was accepted, then end the thread."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        ticked = time.monotonic()
        while True:
            try:
                entry = self._queue.get(timeout=TICK_SECONDS)
            except queue.Empty:
                entry = (None, 0)
            if entry is None:
                return
            item, nbytes = entry
            if item is not None:
                self._handle(item)
                del item, entry  # tensors go back before the next wait
                with self._lock:
                    self._pending -= nbytes
            if time.monotonic() - ticked >= TICK_SECONDS:
                self._tick()
                ticked = time.monotonic()
