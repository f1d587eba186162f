"""What the system says about this machine: CPU, caches, memory it may use."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

_GIB = 1 << 30
_KIB = 1 << 10
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def cpu_count() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """The CPU's own name for itself."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine() or "CPU"


def cache_bytes() -> int:
    """The last cache of the first CPU; 0 where the system does not say."""
    sizes = (_text(path) for path in _CACHES.glob("index*/size"))
    return max((int(s[:-1]) * _KIB for s in map(str.strip, sizes) if s.endswith("K")), default=0)


def memory_bytes() -> int:
    """Memory that this process may use, the container's limit if it has one; 0 if unknown."""
    return min((n for n in (_meminfo("MemTotal"), _limit()) if n), default=0)


def available_bytes() -> int:
    """Memory that is free to take; a GiB where the system does not say."""
    return min((n for n in (_meminfo("MemAvailable"), _limit()) if n), default=_GIB)


def load_per_cpu() -> float | None:
    """Programs that wanted a CPU over the last minute, by CPU; None where it is not known."""
    try:
        return os.getloadavg()[0] / cpu_count()
    except (OSError, AttributeError):
        return None


def slug(name: str) -> str:
    """`name` as a profile's name: lower case, words joined by '-'."""
    plain = re.sub(r"\((r|tm)\)", "", name.lower())
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-.") or "this-machine"


def _meminfo(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE)
    return int(found[1]) * _KIB if found else 0


def _limit() -> int:
    for path in _LIMITS:
        text = _text(path).strip()
        if text.isdigit():
            return int(text)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
