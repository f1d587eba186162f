"""The options of what is recorded and how much, alike in every command that records."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from moeprof.errors import InputError

_BYTES = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BYTES |= {f"{prefix}I": 1024**n for n, prefix in enumerate("KMGT", 1)}
_SECONDS = {"": 1, "S": 1, "M": 60, "H": 3600, "D": 86400}

MaxSizeFlag = Annotated[
    str | None, typer.Option(metavar="BYTES", help="Take no more of the disk, 10GiB say.")
]
RotateFlag = Annotated[
    bool, typer.Option("--rotate", help="At --max-size, let the oldest go for the newest.")
]
DurationFlag = Annotated[
    str | None, typer.Option(metavar="TIME", help="Record for 60s, 10m or 2h and no longer.")
]
SampleFlag = Annotated[
    float | None, typer.Option(metavar="RATE", help="Record this part of the requests, by chance.")
]
AggregateFlag = Annotated[
    int | None,
    typer.Option(
        "--aggregate",
        metavar="STEPS",
        help="Keep counts by expert of every so many steps, 1000 say, and nothing of a token.",
    ),
]

MarginsFlag = Annotated[
    bool, typer.Option("--margins", help="Record by how much experts were chosen.")
]
NextLayerFlag = Annotated[
    bool, typer.Option("--next-layer", help="Record what the next layer's router would choose.")
]


def parse_bytes(text: str | None, option: str) -> int | None:
    """'10GiB', '500 MB' or '1000' in bytes. Raises InputError, which names `option`."""
    found = re.fullmatch(r"([\d.]+)\s*([kmgt]?i?)b?", text or "", re.IGNORECASE)
    return None if text is None else int(_scaled(found, _BYTES, text, option, "10GiB or 500MB"))


def parse_duration(text: str | None, option: str) -> float | None:
    """'60s', '10m', '2h' or '1d' in seconds. Raises InputError, which names `option`."""
    found = re.fullmatch(r"([\d.]+)\s*([smhd]?)", text or "", re.IGNORECASE)
    return None if text is None else _scaled(found, _SECONDS, text, option, "60s, 10m or 2h")


def left_behind(rotated: int, sampled_out: int, share_error: float | None) -> list[str]:
    """What limits took away, in sentences."""
    lines = []
    if rotated:
        lines.append(f"{rotated:,} older tokens were let go to make room")
    if sampled_out:
        lines.append(f"{sampled_out:,} tokens of other requests were left out by chance")
    if share_error is not None:
        lines.append(f"an expert's load is known to {share_error:.1%} (standard error, mean)")
    return lines


def _scaled(
    found: re.Match[str] | None, units: dict[str, int], text: str, option: str, such_as: str
) -> float:
    try:
        if found is not None and (value := float(found[1]) * units[found[2].upper()]) > 0:
            return value
    except (ValueError, KeyError):
        pass
    raise InputError(f"{option} {text!r}: give a number and a unit, such as {such_as}")
