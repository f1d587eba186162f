"""Reads of a scratch file, past the page cache: in order by large blocks, and 4 KiB anywhere."""

from __future__ import annotations

import errno
import mmap
import os
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moeprof.hardware.figure import Figure
from moeprof.hardware.probe.measurement import (
    NotMeasuredError,
    Spread,
    measure,
    measured,
    rate,
)

DEFAULT_BYTES = 1 << 30
_BLOCK = 4 << 20
_PAGE = 4096
_SEQUENTIAL_THREADS = 4
_RANDOM_THREADS = 16
_RANDOM_READS = 64  # of one thread in one round
_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


@dataclass(frozen=True)
class Scratch:
    """An open file of random bytes, and how its reads keep clear of the page cache."""

    descriptor: int
    size: int
    direct: bool

    def read(self, buffer: mmap.mmap, offset: int) -> None:
        """Fill `buffer` from `offset`."""
        if os.preadv(self.descriptor, [buffer], offset) != len(buffer):
            raise NotMeasuredError("the scratch file was cut while it was read")

    def forget(self) -> None:
        """Drop what the page cache holds; direct reads leave nothing there."""
        if not self.direct:
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    @property
    def how(self) -> str:
        """For the method of a figure."""
        way = "O_DIRECT" if self.direct else "the page cache dropped before each round"
        return f"of a {self.size >> 20} MiB file, {way}"


def probe_drive(seconds: float, folder: Path, file_bytes: int = DEFAULT_BYTES) -> dict[str, Figure]:
    """Sequential and random reads of a scratch file in `folder`, which is removed again.

    Raises NotMeasuredError where the folder lies in memory, or has no room, or is not writable.
    """
    if not hasattr(os, "posix_fadvise"):
        raise NotMeasuredError("this system does not let a program read past its page cache")
    if file_system(folder)[1] in _IN_MEMORY:
        raise NotMeasuredError(f"{folder} lies in memory; name a folder on the drive")
    size = max(file_bytes // _BLOCK, _SEQUENTIAL_THREADS) * _BLOCK
    with _scratch_file(folder, size) as scratch:
        return {
            "read_bytes_per_s": _sequential(scratch, seconds),
            "random_reads_per_s": _random(scratch, seconds),
            "latency_s": _latency(scratch, seconds),
        }


def file_system(folder: Path) -> tuple[str, str]:
    """Device and type of the file system that holds `folder`; empty where it is not known."""
    place = str(folder.resolve())
    best = ("", "", "")
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return "", ""
    for device, point, kind, *_ in (line.split() for line in lines):
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[0]):
            best = (point, device, kind)
    return best[1], best[2]


def drive_title(folder: Path) -> str:
    """The drive's model where the kernel says it, else its device, with the file system."""
    device, kind = file_system(folder)
    disk = re.sub(r"(?<=\d)p\d+$|(?<=[a-z])\d+$", "", Path(device).name)
    try:
        model = Path(f"/sys/block/{disk}/device/model").read_text().strip()
    except OSError:
        model = ""
    return f"{model or disk or 'drive'} ({kind or 'file system not known'})"


@contextmanager
def _scratch_file(folder: Path, size: int) -> Iterator[Scratch]:
    try:
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        if free < 2 * size:
            raise NotMeasuredError(f"{folder} has {free >> 20} MiB free, give a smaller size")
        descriptor, name = tempfile.mkstemp(prefix=".moeprof-probe-", dir=folder)
    except OSError as error:
        raise NotMeasuredError(f"{folder}: {error.strerror}") from None
    try:
        _fill(descriptor, size)
        reader, direct = _open_past_cache(name)
    except OSError as error:
        raise NotMeasuredError(f"{folder}: {error.strerror}") from None
    finally:
        os.close(descriptor)
        os.unlink(name)  # now: the reader keeps the bytes, and nothing is left however we end
    try:
        yield Scratch(reader, size, direct)
    finally:
        os.close(reader)


def _fill(descriptor: int, size: int) -> None:
    """Random bytes: drives that compress or leave out zeros must not look fast."""
    generator = np.random.default_rng(0)
    for _ in range(size // _BLOCK):
        os.write(descriptor, generator.bytes(_BLOCK))
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _open_past_cache(name: str) -> tuple[int, bool]:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECT), True
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    return os.open(name, os.O_RDONLY), False


def _sequential(scratch: Scratch, seconds: float) -> Figure:
    part = scratch.size // _SEQUENTIAL_THREADS // _BLOCK * _BLOCK

    def read_part(start: int) -> None:
        with mmap.mmap(-1, _BLOCK) as buffer:
            for offset in range(start, start + part, _BLOCK):
                scratch.read(buffer, offset)

    with ThreadPoolExecutor(_SEQUENTIAL_THREADS) as pool:
        starts = [part * n for n in range(_SEQUENTIAL_THREADS)]

        def read_all() -> None:
            scratch.forget()
            list(pool.map(read_part, starts))

        spread = measure(rate(part * len(starts), read_all), seconds)
    method = f"{_SEQUENTIAL_THREADS} threads, {_BLOCK >> 20} MiB reads in order {scratch.how}"
    return measured("read_bytes_per_s", spread, method)


def _random(scratch: Scratch, seconds: float) -> Figure:
    """A floor: Python's own work of about 10 us a read is in it."""
    generator = np.random.default_rng(0)

    def read_some(offsets: list[int]) -> None:
        with mmap.mmap(-1, _PAGE) as buffer:
            for offset in offsets:
                scratch.read(buffer, offset)

    with ThreadPoolExecutor(_RANDOM_THREADS) as pool:

        def read_anywhere() -> None:
            scratch.forget()
            pages = generator.integers(scratch.size // _PAGE, size=(_RANDOM_THREADS, _RANDOM_READS))
            list(pool.map(read_some, (pages * _PAGE).tolist()))

        spread = measure(rate(_RANDOM_THREADS * _RANDOM_READS, read_anywhere), seconds)
    method = f"{_RANDOM_THREADS} Python threads, 4 KiB reads anywhere {scratch.how}, a floor"
    return measured("random_reads_per_s", spread, method)


def _latency(scratch: Scratch, seconds: float) -> Figure:
    generator = np.random.default_rng(1)
    values: list[float] = []
    ends = time.perf_counter() + seconds
    scratch.forget()
    with mmap.mmap(-1, _PAGE) as buffer:
        while len(values) < _RANDOM_READS or time.perf_counter() < ends:
            offset = int(generator.integers(scratch.size // _PAGE)) * _PAGE
            started = time.perf_counter()
            scratch.read(buffer, offset)
            values.append(time.perf_counter() - started)
    method = f"one 4 KiB read at a time, anywhere {scratch.how}"
    low, middle, high = np.percentile(values, [10, 50, 90]).tolist()
    spread = Spread(middle, low, high, len(values), "10th and 90th percentile")
    return measured("latency_s", spread, method)
