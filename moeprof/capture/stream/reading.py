"""Bytes of a checkpoint into memory that is kept, in large reads past the system's cache.

What is read once is not worth caching (O_DIRECT): that can cost a virtual machine ten times the
processor time of the reading itself, and turns out what others have cached. Memory is touched once
and used again: fresh pages can come slower than the disk reads.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError

ALIGNMENT = 4096  # of reads past the cache, in file and memory


def fresh_bytes(nbytes: int) -> NDArray[np.uint8]:
    """Zeros [nbytes] that begin a page.

    No large pages are asked for: where memory is in pieces, making them takes longer than it saves.
    """
    memory = mmap.mmap(-1, max(1, nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, np.uint8)[:nbytes]


def padded(start: int, nbytes: int) -> int:
    """Bytes of memory that reading `nbytes` from `start` of a file takes: whole blocks."""
    return -(-(start + nbytes) // ALIGNMENT) * ALIGNMENT - start // ALIGNMENT * ALIGNMENT


def read_into(memory: NDArray[np.uint8], path: Path, start: int, nbytes: int) -> NDArray[np.uint8]:
    """`nbytes` from `start` of a file: a view of `memory`, which begins a page and is `padded`.

    Raises InputError where the file is cut off or cannot be read.
    """
    begin, needed = start // ALIGNMENT * ALIGNMENT, start % ALIGNMENT + nbytes
    view = memory[: padded(start, nbytes)].data
    try:
        try:
            _read(path, getattr(os, "O_DIRECT", 0), begin, view, needed)
        except OSError as error:
            if error.errno != errno.EINVAL:  # not every file system has such reads
                raise
            _read(path, 0, begin, view, needed)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return memory[start % ALIGNMENT : needed]


def _read(path: Path, flags: int, start: int, view: Any, needed: int) -> None:
    file = os.open(path, os.O_RDONLY | flags)
    try:
        done = 0
        while done < needed:
            read = os.preadv(file, [view[done:]], start + done)
            if not read:
                raise InputError(f"{path}: is cut off, fetch it again")
            done += read
    finally:
        os.close(file)
