"""Limits of this process that would end a recording."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

from moeprof.doctor.check import Check

MIN_OPEN_FILES = 256  # a rank keeps a few open; the engine takes the most
MIN_TASKS = 32  # threads and processes


def check_limits() -> list[Check]:
    """Open files, the size of a file, and whether threads can be started."""
    return [_open_files(), _file_size(), _threads()]


def _open_files() -> Check:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    ok = limit == resource.RLIM_INFINITY or limit >= MIN_OPEN_FILES
    detail = f"up to {_number(limit)} at a time"
    return Check("open files", ok, detail, needed=True, remedy="" if ok else "ulimit -n 4096")


def _file_size() -> Check:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    ok = limit == resource.RLIM_INFINITY
    detail = "no limit" if ok else f"files end at {limit:,} bytes, and with them a recording"
    return Check("file size", ok, detail, needed=True, remedy="" if ok else "ulimit -f unlimited")


def _threads() -> Check:
    """Each recording has a thread that writes. Engines start processes of their own."""
    left = _tasks_left()
    remedy = "raise the container's limit of processes (pids.max), or ulimit -u"
    try:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
    except RuntimeError as error:
        return Check("threads", False, str(error), needed=True, remedy=remedy)
    ok = left is None or left >= MIN_TASKS
    detail = "can be started" + ("" if left is None else f", {left:,} more in this container")
    return Check("threads", ok, detail, needed=True, remedy="" if ok else remedy)


def _tasks_left(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """How many threads and processes the control group still allows; None: no limit is seen."""
    try:
        most, current = (folder / f"pids.{name}" for name in ("max", "current"))
        return int(most.read_text()) - int(current.read_text())
    except (OSError, ValueError):  # 'max' is no number: there is no limit
        return None


def _number(limit: int) -> str:
    return "any number" if limit == resource.RLIM_INFINITY else f"{limit:,}"
