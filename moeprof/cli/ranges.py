"""Numbers and ranges on the command line."""

from __future__ import annotations

import re

from moeprof.errors import InputError

_MOST = 1_000_000


def parse_numbers(text: str | None, option: str) -> list[int] | None:
    """'0-9,12' as numbers. Raises InputError, which names `option`."""
    if text is None:
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, last = _span(part, option)
        if last - first >= _MOST:
            raise InputError(f"{option} {part}: more than {_MOST:,} numbers")
        numbers += range(first, last + 1)
    return numbers


def parse_span(text: str | None, option: str) -> tuple[int, int] | None:
    """'100-200' or '7' as the first and the last number. Raises InputError."""
    return None if text is None else _span(text, option)


def _span(text: str, option: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", text)
    if found is None or (found[2] and int(found[2]) < int(found[1])):
        raise InputError(f"{option} '{text}': give numbers and ranges, such as 0-9")
    return int(found[1]), int(found[2] or found[1])


def parse_shares(text: str | None, option: str) -> list[float]:
    """'0.1,0.25' as numbers. Raises InputError, which names `option`."""
    if text is None:
        return []
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} '{text}': give numbers, such as 0.1,0.25") from None


def parse_by_layer(texts: list[str] | None, option: str) -> dict[int, int] | None:
    """'0-5,8:1000' and more as values by layer. Raises InputError, which names `option`."""
    if not texts:
        return None
    values: dict[int, int] = {}
    for text in texts:
        layers, colon, value = text.rpartition(":")
        if not colon or not value.strip().isdigit():
            raise InputError(f"{option} '{text}': give layers and a number, such as 0-5,8:1000")
        values |= dict.fromkeys(parse_numbers(layers, option) or [], int(value))
    return values
