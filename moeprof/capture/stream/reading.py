"""Bytes of a checkpoint straight to where they are wanted, in pieces by several threads.

A disk gives its full rate only to large reads of which some are always under way. What is read once
goes past the system's cache (O_DIRECT): caching it can cost a virtual machine ten times the
processor time of the copy, and turns out what others have cached.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError

PIECE_BYTES = 16 << 20
READERS = 4
DIRECT_BYTES = 1 << 20  # fewer are not worth it
ALIGNMENT = 4096  # of reads past the cache, in file and memory


def fresh_bytes(nbytes: int) -> NDArray[np.uint8]:
    """Zeros [nbytes], in large pages where the system has them: touching small ones takes long."""
    if nbytes < PIECE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(nbytes, np.uint8)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def read_all(
    wanted: Iterable[tuple[Path, int, NDArray[Any]]], cached: Collection[tuple[Path, int]] = ()
) -> None:
    """Fill every array of bytes from the place in the file beside it.

    `cached` are places whose bytes the system has already. Raises InputError where a file is cut
    off or cannot be read.
    """
    pieces = [
        (path, start + at, raw[at : at + PIECE_BYTES], (path, start) in cached)
        for path, start, raw in wanted
        for at in range(0, len(raw), PIECE_BYTES)
    ]
    pieces.sort(key=lambda piece: piece[:2])
    with ExitStack() as stack:
        files = {p: stack.enter_context(_File(p)) for p in dict.fromkeys(x[0] for x in pieces)}
        pool = stack.enter_context(ThreadPoolExecutor(READERS, "moeprof-read"))
        for _ in pool.map(lambda piece: files[piece[0]].fill(*piece[1:]), pieces):
            pass


class _File:
    """A file, open for reads by way of the system's cache and, where it can be, past it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()

    def __enter__(self) -> _File:
        try:
            self._plain = os.open(self._path, os.O_RDONLY)
        except OSError as error:
            raise self._unreadable(error) from None
        self._direct = None
        with contextlib.suppress(OSError, AttributeError):  # not every system has it, nor file
            self._direct = os.open(self._path, os.O_RDONLY | os.O_DIRECT)
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._plain)
        if self._direct is not None:
            os.close(self._direct)

    def fill(self, start: int, raw: NDArray[Any], cached: bool) -> None:
        """`raw` from `start` on."""
        try:
            if self._direct is None or cached or len(raw) < DIRECT_BYTES:
                self._read(self._plain, start, raw.data, len(raw))
            else:
                self._fill_past_cache(self._direct, start, raw)
        except OSError as error:
            raise self._unreadable(error) from None

    def _fill_past_cache(self, file: int, start: int, raw: NDArray[Any]) -> None:
        """By way of memory that is aligned, as such reads want it."""
        if not hasattr(self._local, "aligned"):
            self._local.aligned = mmap.mmap(-1, PIECE_BYTES + 2 * ALIGNMENT)
        begin = start // ALIGNMENT * ALIGNMENT
        needed = start - begin + len(raw)
        view = memoryview(self._local.aligned)[: -(-needed // ALIGNMENT) * ALIGNMENT]
        self._read(file, begin, view, needed)
        raw[:] = np.frombuffer(view, np.uint8)[start - begin : needed]

    def _read(self, file: int, start: int, view: memoryview, needed: int) -> None:
        done = 0
        while done < needed:
            read = os.preadv(file, [view[done:]], start + done)
            if not read:
                raise InputError(f"{self._path}: is cut off, fetch it again")
            done += read

    def _unreadable(self, error: OSError) -> InputError:
        return InputError(f"{self._path}: cannot be read: {error.strerror}")
