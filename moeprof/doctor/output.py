"""The folder that traces go to: room, speed, permissions, modes."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from moeprof.doctor.check import Check
from moeprof.trace.schema import FILE_MODE

MIN_FREE_BYTES = 1 << 30
MAX_WRITTEN_BYTES = 32 << 20
MAX_SECONDS = 0.5
M3_TOKEN_BYTES = 245  # of a token of MiniMax-M3 in a trace, measured: docs/capture.md
MIN_BYTES_PER_S = 10_000 * M3_TOKEN_BYTES  # a busy server
_BLOCK = 1 << 20


def check_output(path: Path) -> list[Check]:
    """`path` is a folder, or a trace that is to be made. A scratch file is written and removed."""
    place = path.absolute()
    folder = next(f for f in (place, *place.parents) if f.is_dir())
    try:
        descriptor, name = tempfile.mkstemp(prefix=".moeprof-doctor-", dir=folder)
    except OSError as error:
        detail = f"{folder}: {error.strerror}"
        remedy = "name a folder that you may write to with --output"
        return [Check("output", False, detail, needed=True, remedy=remedy)]
    try:
        return [_room(folder), _modes(folder, name), _speed(folder, descriptor)]
    finally:
        os.close(descriptor)
        with suppress(OSError):
            os.unlink(name)


def _room(folder: Path) -> Check:
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    ok = free >= MIN_FREE_BYTES
    tokens = free / M3_TOKEN_BYTES / 1e6
    detail = f"{folder}: {free / 1e9:,.1f} GB free, {tokens:,.0f} million tokens of MiniMax-M3"
    remedy = "" if ok else "free some, or record with --max-size, --sample-requests or --aggregate"
    return Check("output", ok, detail, needed=True, remedy=remedy)


def _modes(folder: Path, name: str) -> Check:
    """Routing tells much of the text, so others are kept from reading: if the disk can do that."""
    os.chmod(name, FILE_MODE)
    found = stat.S_IMODE(os.stat(name).st_mode)
    ok = found == FILE_MODE
    detail = f"files are {FILE_MODE:04o}, for you alone" if ok else f"files become {found:04o}"
    remedy = (
        "" if ok else f"{folder} keeps no modes: whoever can read it reads traces; name another"
    )
    return Check("permissions", ok, detail, remedy=remedy)


def _speed(folder: Path, descriptor: int) -> Check:
    """Bytes that reach the disk a second, as far as half a second tells."""
    block, written, started = os.urandom(_BLOCK), 0, time.perf_counter()
    try:
        while written < MAX_WRITTEN_BYTES and time.perf_counter() - started < MAX_SECONDS:
            written += os.write(descriptor, block)
        os.fsync(descriptor)
    except OSError as error:
        detail = f"{folder}: after {written:,} bytes: {error.strerror}"
        return Check("disk speed", False, detail, needed=True, remedy="name another with --output")
    rate = written / (time.perf_counter() - started)
    ok = rate >= MIN_BYTES_PER_S
    tokens = rate / M3_TOKEN_BYTES
    detail = f"{rate / 1e6:,.0f} MB/s, {tokens:,.0f} tokens/s of MiniMax-M3"
    slow = "a busy server would drop tokens, with a count: --sample-requests, or a faster disk"
    return Check("disk speed", ok, detail, remedy="" if ok else slow)
