"""Aligned columns and wrapped paragraphs, at most 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

WIDTH = 80
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def printable(text: str) -> str:
    """`text` without control characters: a label must not move the cursor or colour the line."""
    return "".join(c if c.isprintable() else "�" for c in text)


def clipped(text: str, width: int) -> str:
    """Printable `text` of at most `width` characters."""
    text = printable(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def shortened(name: str, width: int) -> str:
    """A printable `name` of at most `width` characters, both ends kept: names differ there."""
    name, tail = printable(name), (width - 1) // 2
    return name if len(name) <= width else f"{name[: width - 1 - tail]}…{name[-tail:]}"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """Columns under headings, two spaces apart: the first `left` flush left, the rest right."""
    cells = [list(columns), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        parts = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    lines.insert(1, "  ".join("─" * width for width in widths).rstrip())
    return "\n".join(lines)


def pairs(values: Mapping[str, str]) -> str:
    """'name  value' lines, long values wrapped under themselves."""
    width = max(map(len, values), default=0) + 2
    return "\n".join(
        textwrap.fill(
            printable(value) or "-",
            WIDTH,
            initial_indent=name.ljust(width),
            subsequent_indent=" " * width,
            break_long_words=True,
            break_on_hyphens=False,
        )
        for name, value in values.items()
    )


def wrapped(text: str, indent: str = "", first: str | None = None) -> str:
    """A paragraph of at most 80 columns."""
    return textwrap.fill(
        printable(text),
        WIDTH,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def bar(share: float, width: int) -> str:
    """A bar of eighths of a character; `share` is clipped to 0 to 1."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)
