"""From `8xh200`, `4xrtx-4090+epyc-9005` or a TOML file to a `Cluster`."""

from __future__ import annotations

import difflib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path

from moeprof.errors import InputError
from moeprof.hardware.cluster import Cluster, make_cluster
from moeprof.hardware.profile import HardwareProfile, Kind

Parts = list[tuple[HardwareProfile, int]]  # profiles, and how many of each a node has

# [nodes x] [count x] name; a name may hold an x of its own (rtx-...).
_TERM = re.compile(r"(?:(?P<first>\d{1,6})x)?(?:(?P<second>\d{1,6})x)?(?P<name>.+)", re.DOTALL)


def load_hardware(hardware: str | Path | HardwareProfile | Cluster) -> Cluster:
    """The GPUs that a deployment runs on, and what else is named.

    `hardware` is a GPU name with a count before it (`8xh200`; nodes first in `2x8xb200`; no count
    is one GPU), then the rest of a node after '+' (`4xrtx-4090+epyc-9005+2xnvme-gen5`: a host,
    drives, links). A TOML file may stand in place of any name. Raises InputError that lists what
    exists for an unknown name: there is no fallback to a similar device.
    """
    if isinstance(hardware, Cluster):
        return hardware
    if isinstance(hardware, HardwareProfile):
        return make_cluster([(hardware, 1)])
    return make_cluster(*read_parts(hardware))


def read_parts(hardware: str | Path) -> tuple[Parts, int]:
    """The profiles that `hardware` names, with the number of each a node has; and the nodes."""
    text = str(hardware).strip()
    if _is_file(text):
        return _read_file(Path(text)), 1
    first, *rest = text.split("+")
    parts, nodes = _read_term(first)
    for term in rest:
        more, above = _read_term(term)
        if above != 1:
            raise InputError(f"'+{term}': nodes are counted once, before the GPUs: 2x8xb200+...")
        parts += more
    return parts, nodes


def hardware_files(hardware: str) -> list[Path]:
    """The user's own files among what `hardware` names."""
    if _is_file(hardware.strip()):
        return [Path(hardware.strip())]
    named = (_TERM.fullmatch(term.strip()) for term in hardware.split("+"))
    return [Path(term["name"]) for term in named if term and term["name"].endswith(".toml")]


def profile_names(kind: Kind | None = None) -> tuple[str, ...]:
    """Names of the profiles that ship with moeprof, or of those of one kind, sorted."""
    return tuple(sorted(p.name for p in _profiles() if kind is None or p.kind is kind))


def load_profile(name: str) -> HardwareProfile:
    """A device by name or alias; case and underscores do not matter (`H200_SXM`).

    Raises InputError naming near devices, or all of them.
    """
    key = name.strip().lower().replace("_", "-")
    for where, text in _shipped_files():
        if f'"{key}"' in text:  # reading all of them takes less than parsing one
            profile = _parse(text, where)[0][0]
            if key in (profile.name, *profile.aliases):
                return profile
    spoken = [name for profile in _profiles() for name in (profile.name, *profile.aliases)]
    near = difflib.get_close_matches(key, spoken, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(
        f"no GPU, host, link or drive '{name}' is known; {hint}GPUs: "
        f"{', '.join((*profile_names(Kind.GPU), *profile_names(Kind.SOC)))}, or a TOML file; "
        "all: moeprof hardware list"
    )


def read_profile(path: Path) -> HardwareProfile:
    """The one profile in a TOML file. Raises InputError, one line with file, key and remedy."""
    parts = _read_file(path)
    if len(parts) > 1:
        raise InputError(f"{path}: describes a machine of {len(parts)} profiles, not one device")
    return parts[0][0]


def _read_term(term: str) -> tuple[Parts, int]:
    match = _TERM.fullmatch(term.strip())
    if match is None:
        raise InputError(f"no hardware is named; GPUs: {', '.join(profile_names(Kind.GPU))}")
    first, second, name = match["first"], match["second"], match["name"]
    nodes, count = (int(first), int(second)) if second else (1, int(first or 1))
    if not name.endswith(".toml"):
        return [(load_profile(name), count)], nodes
    parts = _read_file(Path(name))
    if len(parts) == 1 and parts[0][1] == 1:
        return [(parts[0][0], count)], nodes
    if count != 1:
        raise InputError(f"'{term}': the file counts its own parts; leave out '{count}x'")
    return parts, nodes


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _read_file(path: Path) -> Parts:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not TOML: {error}") from None
    except ValueError as error:  # a null byte in the name
        raise InputError(f"{str(path)!r}: {error}") from None
    return _parse(text, str(path))


@cache
def _profiles() -> tuple[HardwareProfile, ...]:
    return tuple(_parse(text, where)[0][0] for where, text in _shipped_files())


@cache
def _shipped_files() -> tuple[tuple[str, str], ...]:
    """Name and text of every file in `profiles/KIND/`."""
    folders = files("moeprof.hardware").joinpath("profiles").iterdir()
    return tuple(
        (f"{folder.name}/{entry.name}", entry.read_text(encoding="utf-8"))
        for folder in folders
        if folder.is_dir()
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def _parse(text: str, where: str) -> Parts:
    from moeprof.hardware.profile_file import parse_profiles  # pydantic, only when a file is read

    return parse_profiles(text, where)
