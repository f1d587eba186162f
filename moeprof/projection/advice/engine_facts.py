"""What engines run, and the flags of their command lines: engines.toml, with sources."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from moeprof.errors import InputError


def engine_facts(engine: str) -> Mapping[str, Any]:
    """The table of `engine`. Raises InputError naming those that there are."""
    known = _known()
    if engine not in known:
        raise InputError(f"engine '{engine}' is not one of {', '.join(known)}")
    return known[engine]


def advised_engines() -> tuple[str, ...]:
    """Engines whose command lines are known."""
    return tuple(_known())


def flag_source(engine: str, flag: str) -> str:
    """The page that documents `flag`. Raises InputError for one that is not in engines.toml."""
    for page in engine_facts(engine)["flags"]:
        if flag in page["names"]:
            return str(page["source"])
    raise InputError(f"{flag} is no known flag of {engine}")


@cache
def _known() -> dict[str, dict[str, Any]]:
    text = files("moeprof.projection.advice").joinpath("engines.toml").read_text(encoding="utf-8")
    return {entry["name"]: entry for entry in tomllib.loads(text)["engine"]}
