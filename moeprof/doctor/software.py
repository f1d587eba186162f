"""Python, moeprof and the packages that it works with; versions by metadata, nothing imported."""

from __future__ import annotations

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from moeprof import __version__
from moeprof.doctor.check import Check


def check_software() -> list[Check]:
    """Python, moeprof with what it requires, torch and transformers."""
    return [_python(), _moeprof(), _package("torch", (2, 6)), _package("transformers", (5, 0))]


def installed(*names: str) -> str | None:
    """The version of the first of these packages that is installed here."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def release(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: '2.13.0+cpu' is (2, 13, 0)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def _python() -> Check:
    machine = f"{platform.system()} {platform.machine()}"
    detail = f"{platform.python_version()} at {sys.executable}, {machine}"
    ok = sys.platform.startswith("linux")
    return Check("python", ok, detail, remedy="" if ok else "moeprof records on Linux")


def _moeprof() -> Check:
    try:
        wanted = [_floor(line) for line in requires("moeprof") or [] if "extra ==" not in line]
    except PackageNotFoundError:
        return Check(
            "moeprof",
            False,
            f"{__version__}, run from a folder: engines do not find its plugins",
            remedy=f"{sys.executable} -m pip install moeprof",
        )
    missing = [name for name, floor in wanted if release(installed(name) or "") < floor]
    if missing:
        detail = f"{__version__}; missing or too old: {', '.join(missing)}"
        remedy = f"{sys.executable} -m pip install --upgrade moeprof"
        return Check("moeprof", False, detail, needed=True, remedy=remedy)
    return Check("moeprof", True, f"{__version__} and the {len(wanted)} packages it requires")


def _floor(requirement: str) -> tuple[str, tuple[int, ...]]:
    """'numpy>=2.0' as a name and the least version, (0,) for any."""
    name = re.match(r"[\w.-]+", requirement)
    floor = re.search(r">=\s*([\d.]+)", requirement)
    return (name[0] if name else requirement), release(floor[1]) if floor else (0,)


def _package(name: str, floor: tuple[int, ...]) -> Check:
    found = installed(name)
    remedy = "pip install --upgrade 'moeprof[capture]'"
    least = ".".join(map(str, floor))
    if found is None:
        detail = "not installed; needed by capture transformers and capture run"
        return Check(name, False, detail, remedy=remedy)
    if release(found) < floor:
        return Check(name, False, f"{found}, older than {least}", remedy=remedy)
    return Check(name, True, found)
