"""The shape of a profile's TOML file, checked by pydantic where it enters the program.

The head holds kind, name, title, vendor, aliases and the names of links. Every table is one figure
of `figure.FIGURE_UNITS` with value, unit, provenance, verified and source, and low and high where a
range is known. The file of a machine holds such profiles as `[[profile]]`, each with a `count`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeprof.errors import InputError
from moeprof.hardware.figure import FIGURE_UNITS, Figure
from moeprof.hardware.profile import HardwareProfile, Kind, LinkRole
from moeprof.quantity import Provenance

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
_Count = Annotated[int, Field(ge=1, strict=True)]
_Text = Annotated[str, Field(min_length=1, strict=True)]
_M = TypeVar("_M", bound=BaseModel)

Parts = list[tuple[HardwareProfile, int]]  # profiles, and how many of each one machine has


class _Figure(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    value: _Positive
    unit: _Text
    provenance: Provenance
    source: _Text
    low: _Positive | None = None
    high: _Positive | None = None
    verified: Annotated[bool, Field(strict=True)] = False
    method: str = ""
    by_threads: tuple[tuple[_Count, _Positive], ...] = ()


class _Profile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: _Text
    title: _Text
    vendor: Annotated[str, Field(strict=True)] = ""
    kind: Kind = Kind.GPU
    role: LinkRole | None = None
    aliases: tuple[_Text, ...] = ()
    scale_up_link: Annotated[str, Field(strict=True)] = ""
    host_link: Annotated[str, Field(strict=True)] = ""


class _Counted(BaseModel):
    count: _Count = 1


def parse_profiles(text: str, where: str) -> Parts:
    """The profiles of a TOML file. Raises InputError, one line with `where`, key and remedy."""
    try:
        content = tomllib.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: not TOML: {error}") from None
    machine = content.get("profile")
    if machine is None:
        return [(check_profile(content, where), 1)]
    if len(content) > 1 or not isinstance(machine, list) or not machine:
        raise InputError(f"{where}: profile: a machine is a list of [[profile]] and nothing else")
    return [_part(each, f"{where}: profile {n}") for n, each in enumerate(machine, 1)]


def check_profile(content: Mapping[str, Any], where: str) -> HardwareProfile:
    """The profile in `content`. Raises InputError, one line with `where`, key and remedy."""
    tables = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    head = _validate(_Profile, {k: v for k, v in content.items() if k not in tables}, where)
    figures = {name: _figure(name, table, where) for name, table in tables.items()}
    try:
        return HardwareProfile(**head.model_dump(), figures=figures)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _part(content: Any, where: str) -> tuple[HardwareProfile, int]:
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: not a table; write it under [[profile]]")
    counted = _validate(_Counted, {k: v for k, v in content.items() if k == "count"}, where)
    return check_profile({k: v for k, v in content.items() if k != "count"}, where), counted.count


def _figure(name: str, table: Mapping[str, Any], where: str) -> Figure:
    if name not in FIGURE_UNITS:
        known = ", ".join(FIGURE_UNITS)
        raise InputError(f"{where}: no figure is called '{name}'; there are {known}")
    figure = _validate(_Figure, table, f"{where}: {name}")
    try:
        return Figure(**figure.model_dump())
    except InputError as error:
        raise InputError(f"{where}: {name}: {error}") from None


def _validate(kind: type[_M], content: Mapping[str, Any], where: str) -> _M:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    raise InputError(f"{where}: {key}: {problem['msg']}; {_remedy(problem['type'], kind)}")


def _remedy(problem: str, kind: type[BaseModel]) -> str:
    if problem == "missing":
        return "add it"
    if problem == "extra_forbidden":
        return f"keys here are {', '.join(kind.model_fields)}"
    return "see a profile that ships: moeprof hardware show h200"
