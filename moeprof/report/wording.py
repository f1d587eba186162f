"""How numbers are written, in one place, so that no two outputs round differently.

GiB = 2^30 for memory that is held, GB = 10^9 for bytes that are read, as bandwidth is quoted.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

GIB = 1 << 30


def count(value: float) -> str:
    """A whole number with thousands separators: '1,048,576'."""
    return f"{round(value):,}"


def counted(number: int, noun: str) -> str:
    """'1 request', '64 requests'."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def bits(value: float, digits: int = 3) -> str:
    """An amount of information: '0.423 bits'."""
    return f"{value:.{digits}f} bits"


def command(*words: object) -> str:
    """A moeprof command line that a shell takes as it stands, whatever is in a path."""
    return shlex.join(["moeprof", *map(str, words)])


def as_next(commands: Iterable[str]) -> list[str]:
    """The lines that say what to try next, a command each."""
    return [f"{'' if place else 'Next:':7}{line}" for place, line in enumerate(commands)]


def percent(share: float) -> str:
    """A share of one as percent: '71 %', '3.1 %', '0.4 %'."""
    value = 100 * share
    whole = value in (0, 100) or 10 <= value < 99.5
    return f"{value:.0f} %" if whole else f"{value:.1f} %"


def times(ratio: float) -> str:
    """A ratio to a mean: '1.34x'."""
    digits = f"{ratio:.0f}" if ratio >= 99.5 else f"{ratio:.3g}" if ratio >= 10 else f"{ratio:.2f}"
    return f"{digits}\u00d7"


def held_bytes(value: float) -> str:
    """Memory that is held, in binary units: '102.4 GiB'."""
    return _scaled(value, (("TiB", 1 << 40), ("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)))


def read_bytes(value: float) -> str:
    """Bytes that move, in decimal units: '12.9 GB'."""
    return _scaled(value, (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)))


def gib(value: float) -> str:
    """Bytes as a bare number of GiB, for a column under that heading: '99.98'."""
    return f"{value / GIB:,.2f}"


def short_count(value: float) -> str:
    """A large number of tokens to three digits: '1.05 M', '262 k', '812'."""
    for unit, size in ((" M", 10**6), (" k", 10**3)):
        if value >= size:
            return (
                f"{value / size:.3g}{unit}"
                if value < 999.5 * size
                else f"{value / size:,.0f}{unit}"
            )
    return f"{value:.0f}"


def listed(items: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _scaled(value: float, units: Sequence[tuple[str, int]]) -> str:
    for unit, size in units:
        if abs(value) >= size:
            scaled = value / size
            return f"{scaled:,.0f} {unit}" if scaled >= 999.5 else f"{scaled:.3g} {unit}"
    return f"{value:.0f} bytes"
