"""Memory for what has been read and has no place yet, used again and again."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.stream.reading import fresh_bytes


@dataclass(eq=False)
class Room:
    """A stretch of the memory, whole pages."""

    memory: NDArray[np.uint8]
    start: int
    stop: int
    taken: bool = True


class Staging:
    """A ring of `nbytes`: stretches are given out one behind the other, and come back in any order.

    A stretch is never larger than the ring.
    """

    def __init__(self, nbytes: int) -> None:
        self._memory = fresh_bytes(nbytes)
        self._rooms: deque[Room] = deque()  # given out, the oldest first
        self._changed = threading.Condition()
        self._closed = False

    def take(self, nbytes: int) -> Room | None:
        """The next stretch, as soon as there is room for it; None once the ring is closed."""
        with self._changed:
            while not self._closed:
                start = self._find(nbytes)
                if start is not None:
                    stop = start + nbytes
                    self._rooms.append(Room(self._memory[start:stop], start, stop))
                    return self._rooms[-1]
                self._changed.wait()
        return None

    def give_back(self, room: Room) -> None:
        """Nobody looks at the stretch any more."""
        with self._changed:
            room.taken = False
            while self._rooms and not self._rooms[0].taken:
                self._rooms.popleft()
            self._changed.notify()

    def close(self) -> None:
        """Give nothing out any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _find(self, nbytes: int) -> int | None:
        """Where `nbytes` are free behind the youngest stretch, or at the beginning."""
        if not self._rooms:
            return 0
        oldest, youngest = self._rooms[0].start, self._rooms[-1].stop
        if youngest > oldest:  # in use is one stretch of the ring, free what surrounds it
            if len(self._memory) - youngest >= nbytes:
                return youngest
            return 0 if oldest >= nbytes else None
        return youngest if oldest - youngest >= nbytes else None
