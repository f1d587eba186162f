"""A machine's profiles as the TOML file that `profile_file` reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moeprof.errors import InputError
from moeprof.hardware.figure import Figure
from moeprof.hardware.profile import HardwareProfile

_HEAD = "# Written by moeprof hardware probe. Correct or add figures here, each with its source.\n"


def write_machine(
    parts: Sequence[tuple[HardwareProfile, int]], path: Path, *, note: str = ""
) -> None:
    """Write profiles, and how many of each the machine has, whole or not at all.

    `note`, a line, becomes a comment at the head. Raises InputError where the file cannot be
    written.
    """
    check_target(path, force=True)
    head = _HEAD + (f"# {note}\n" if note else "")
    content = head + "".join(_part(profile, count) for profile, count in parts)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(content, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)


def check_target(path: Path, *, force: bool) -> None:
    """Make the folder of `path`, and refuse before anything is measured what would be refused then.

    Raises InputError for a file that exists without `force`, a folder, or no place to write.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, name a file")
    if path.exists() and not force:
        raise InputError(f"{path} exists, it will not be overwritten without --force")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: cannot be written: no permission in {path.parent}")


def _part(profile: HardwareProfile, count: int) -> str:
    head = {
        "count": count,
        "kind": profile.kind.value,
        "role": profile.role.value if profile.role else "",
        "name": profile.name,
        "title": profile.title,
        "vendor": profile.vendor,
        "aliases": profile.aliases,
        "scale_up_link": profile.scale_up_link,
        "host_link": profile.host_link,
    }
    tables = (_table(name, figure) for name, figure in profile.figures.items())
    return "\n[[profile]]\n" + "".join(_lines(head)) + "".join(tables)


def _table(name: str, figure: Figure) -> str:
    band = figure.low is not None and (figure.low, figure.high) != (figure.value,) * 2
    values = {
        "value": figure.value,
        "low": figure.low if band else None,
        "high": figure.high if band else None,
        "unit": figure.unit,
        "provenance": figure.provenance.value,
        "verified": figure.verified,
        "source": figure.source,
        "method": figure.method,
        "by_threads": figure.by_threads,
    }
    return f"\n[profile.{name}]\n" + "".join(_lines(values))


def _lines(values: dict[str, Any]) -> Iterator[str]:
    """'key = value' for what is there."""
    for key, value in values.items():
        if value not in (None, "", ()):
            yield f"{key} = {_toml(value)}\n"


def _toml(value: Any) -> str:
    """JSON's text of strings, numbers, booleans and lists is TOML's too, but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
