"""From `8xh200`, `2x8xb200` or a TOML file to a `Cluster`."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from moeprof.errors import InputError
from moeprof.hardware.profile import Cluster, HardwareProfile

# [nodes x] [GPUs x] name; a name may hold an x of its own (rtx-...).
_CLUSTER = re.compile(r"(?:(?P<first>\d{1,6})x)?(?:(?P<second>\d{1,6})x)?(?P<name>.+)", re.DOTALL)


def load_hardware(hardware: str | Path | HardwareProfile | Cluster) -> Cluster:
    """The GPUs that a deployment runs on.

    `hardware` is a GPU name with a count before it (`8xh200`; nodes first in `2x8xb200`; no count
    is one GPU) or the same with a profile's TOML file in place of the name. Raises InputError that
    lists what exists for an unknown GPU: there is no fallback to a similar one.
    """
    if isinstance(hardware, Cluster):
        return hardware
    if isinstance(hardware, HardwareProfile):
        return Cluster(hardware)
    text = str(hardware).strip()
    if _is_file(text):
        return Cluster(read_profile(Path(text)))
    match = _CLUSTER.fullmatch(text)
    if match is None:
        raise InputError(f"no hardware is named; GPUs: {', '.join(profile_names())}")
    first, second = match["first"], match["second"]
    nodes, gpus = (int(first), int(second)) if second else (1, int(first or 1))
    return Cluster(_profile_or_file(match["name"]), nodes, gpus)


@cache
def profile_names() -> tuple[str, ...]:
    """Names of the GPUs that ship with moeprof, sorted."""
    folder = files("moeprof.hardware").joinpath("profiles")
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(n.removesuffix(".toml") for n in names if n.endswith(".toml")))


def load_profile(name: str) -> HardwareProfile:
    """A GPU by name or alias; case and underscores do not matter (`H200_SXM`).

    Raises InputError naming near GPUs, or all of them.
    """
    profiles = _profiles()
    key = name.lower().replace("_", "-")
    for profile in profiles:
        if key == profile.name or key in profile.aliases:
            return profile
    spoken = [alias for profile in profiles for alias in (profile.name, *profile.aliases)]
    near = difflib.get_close_matches(key, spoken, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(
        f"no GPU '{name}' is known; {hint}GPUs: {', '.join(profile_names())}, or a TOML file"
    )


def read_profile(path: Path) -> HardwareProfile:
    """A profile from a TOML file. Raises InputError, one line with file and key."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: not TOML: {error}") from None
    return _checked(content, str(path))


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # a name that no file can have
        return False


def _profile_or_file(name: str) -> HardwareProfile:
    if name.endswith(".toml"):
        return read_profile(Path(name))
    return load_profile(name)


@cache
def _profiles() -> tuple[HardwareProfile, ...]:
    folder = files("moeprof.hardware").joinpath("profiles")
    return tuple(
        _checked(tomllib.loads(folder.joinpath(f"{name}.toml").read_text(encoding="utf-8")), name)
        for name in profile_names()
    )


def _checked(content: Mapping[str, Any], where: str) -> HardwareProfile:
    from moeprof.hardware.profile_file import check_profile  # pydantic, only when a file is read

    return check_profile(content, where)
