"""Calls that run side by side, taken in the order of their numbers whatever order they end in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")
_LOOK_S = 0.2  # how often the oldest call is left to see whether to go on waiting for it


class Window(Generic[T]):
    """`call(0)` to `call(count - 1)` on `workers` threads.

    None begins while `ahead` older ones wait to be taken, so memory is bounded. Use as a context
    manager: at its end nothing more begins; `cancel`, which must end calls that run, is called.
    """

    def __init__(
        self,
        call: Callable[[int], T],
        count: int,
        *,
        workers: int,
        ahead: int,
        cancel: Callable[[], object],
    ) -> None:
        self._call = call
        self._count = count
        self._ahead = ahead
        self._cancel = cancel
        self._next = 0
        self._waiting: deque[tuple[int, Future[T]]] = deque()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="moeprof-ask")

    def results(self, stopped: Callable[[], bool]) -> Iterator[tuple[int, T]]:
        """Each number with what its call returned, in order, until all are or `stopped`."""
        while not stopped():
            self._fill()
            if not self._waiting:
                return
            number, future = self._waiting[0]
            try:
                result = future.result(_LOOK_S)
            except StillRunning:
                continue
            self._waiting.popleft()
            yield number, result

    def finished(self) -> Iterator[tuple[int, T]]:
        """Those of the rest that ended by themselves, in order."""
        while self._waiting:
            number, future = self._waiting.popleft()
            if future.done() and not future.cancelled() and future.exception() is None:
                yield number, future.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._cancel()
        self._pool.shutdown(wait=True)

    def _fill(self) -> None:
        while self._next < self._count and len(self._waiting) < self._ahead:
            self._waiting.append((self._next, self._pool.submit(self._call, self._next)))
            self._next += 1
