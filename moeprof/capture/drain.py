"""The writer thread and the bounded queue before it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

CHUNK_ITEMS = 64
POLL_SECONDS = 0.2
ITEM_BYTES = 512  # what an item takes beside its arrays


class Drain:
    """Hands items to `handle` in a thread of its own, in order, and calls `tick` in between.

    `offer` never blocks: it refuses what would take the bytes that wait beyond the limit. The
    thread looks for items a few times a second instead of being woken by each: in Python a thread
    that wakes up takes the interpreter from the one that runs the model, and small steps together
    take less time than one by one. Before a quarter of the limit waits it is woken after all.
    `handle` and `tick` deal with their own errors.
    """

    def __init__(
        self,
        handle: Callable[[Sequence[Any]], None],
        tick: Callable[[], None],
        max_pending_bytes: int,
    ) -> None:
        self._handle = handle
        self._tick = tick
        self._limit = max_pending_bytes
        self._queue: deque[tuple[Any, int]] = deque()
        self._lock = threading.Lock()
        self._pending = 0
        self._wake = threading.Event()
        self._closing = False
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
        self._queue.append((item, nbytes))
        if self._pending > self._limit // 4:
            self._wake.set()
        return True

    def close(self) -> None:
        """Handle all that was accepted, then end the thread."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            closing = self._closing  # before the look: nothing is offered after it
            if not self._queue:
                if closing:
                    return
                self._wake.wait(POLL_SECONDS)
                self._wake.clear()
            else:
                self._handle_waiting()
            self._tick()

    def _handle_waiting(self) -> None:
        waiting = min(CHUNK_ITEMS, len(self._queue))
        taken = [self._queue.popleft() for _ in range(waiting)]
        self._handle([item for item, _ in taken])
        nbytes = sum(nbytes for _, nbytes in taken)
        del taken  # tensors go back before the next wait
        with self._lock:
            self._pending -= nbytes
