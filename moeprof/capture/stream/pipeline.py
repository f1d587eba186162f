"""From the disk to the places in the model, without a pause between two layers.

Threads read what comes next into a ring of memory for as long as it has room, also while a layer
computes. When the places of the next layer are free, other threads, one a core, copy or decode to
them what has been read, and so make room for more.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from moeprof.capture.stream.parts import PLACERS, READERS, Fill
from moeprof.capture.stream.reading import padded, read_into
from moeprof.capture.stream.staging import Room, Staging

if TYPE_CHECKING:
    import torch


class Pipeline:
    """Reads the fills of several parts of a model, in order.

    At most `staging_bytes` of them ahead, or the largest fill, if that is more.
    """

    def __init__(self, parts: Sequence[Sequence[Fill]], staging_bytes: int) -> None:
        self._parts = parts
        self._next = iter(parts)
        largest = max((fill.staged_bytes for fills in parts for fill in fills), default=0)
        self._staging = Staging(max(staging_bytes, largest))
        self._read: queue.Queue[tuple[Fill, Room, Future[list[torch.Tensor]]]] = queue.Queue()
        self._readers = ThreadPoolExecutor(READERS, "moeprof-read")
        self._placers = ThreadPoolExecutor(PLACERS, "moeprof-place", _alone)
        self._feeder = threading.Thread(target=self._feed, name="moeprof-feed", daemon=True)
        self.busy = Busy()
        self._feeder.start()

    def place(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fill `tensors`, by name those of the next part, whose old values nobody needs any more.

        Raises InputError where a file is cut off or cannot be read.
        """
        placing = []
        for _ in next(self._next):
            fill, room, read = self._read.get()
            target, found = tensors[fill.target], read.result()
            placing.append(self._placers.submit(self._place, fill, target, found, room))
        for placed in placing:
            placed.result()

    def close(self) -> None:
        """Stop reading, and wait until it has stopped."""
        self._staging.close()
        self._feeder.join()
        self._readers.shutdown(cancel_futures=True)
        self._placers.shutdown(cancel_futures=True)

    def _feed(self) -> None:
        for fill in (fill for fills in self._parts for fill in fills):
            room = self._staging.take(fill.staged_bytes)
            if room is None:
                return
            self._read.put((fill, room, self._readers.submit(self._fetch, fill, room)))

    def _fetch(self, fill: Fill, room: Room) -> list[torch.Tensor]:
        """The parts of what is read, in the memory of `room`."""
        found, memory = [], room.memory
        with self.busy:
            for part in fill.source.parts:
                raw = read_into(memory, part.file, part.start, part.nbytes)
                found.append(part.tensor(raw))
                memory = memory[padded(part.start, part.nbytes) :]
        return found

    def _place(
        self, fill: Fill, target: torch.Tensor, read: Sequence[torch.Tensor], room: Room
    ) -> None:
        import torch

        try:
            with torch.inference_mode():
                fill.source.put(read, fill.into(target))
        finally:
            self._staging.give_back(room)


class Busy:
    """Seconds in which at least one thread is in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside, self._since, self._before = 0, 0.0, 0.0

    @property
    def seconds(self) -> float:
        """So far."""
        with self._lock:
            return self._before + (time.monotonic() - self._since if self._inside else 0.0)

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._since = time.monotonic()
            self._inside += 1

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before += time.monotonic() - self._since


def _alone() -> None:
    """A thread of several that share the cores leaves the others theirs."""
    import torch

    torch.set_num_threads(1)
