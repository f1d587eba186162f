"""The shape of a profile's TOML file, checked by pydantic where it enters the program.

The head holds name, title, vendor, aliases and the names of links. Every table is one figure of
`profile.FIGURE_UNITS` with value, unit, provenance and source, and low and high where a range is
published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeprof.errors import InputError
from moeprof.hardware.profile import HardwareProfile
from moeprof.quantity import Provenance, Quantity

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Text = Annotated[str, Field(min_length=1)]
_M = TypeVar("_M", bound=BaseModel)


class _Figure(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Annotated[_Positive, Field(strict=True)]
    unit: Annotated[_Text, Field(strict=True)]
    provenance: Provenance
    source: Annotated[_Text, Field(strict=True)]
    low: Annotated[_Positive, Field(strict=True)] | None = None
    high: Annotated[_Positive, Field(strict=True)] | None = None


class _Profile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: _Text
    title: _Text
    vendor: _Text
    aliases: list[_Text] = []
    scale_up_link: str = ""
    host_link: str = ""


def check_profile(content: Mapping[str, Any], where: str) -> HardwareProfile:
    """The profile in `content`. Raises InputError, one line with `where` and the key."""
    tables = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    head = _validate(_Profile, {k: v for k, v in content.items() if k not in tables}, where)
    figures = {name: _figure(name, table, where) for name, table in tables.items()}
    return HardwareProfile(
        name=head.name,
        title=head.title,
        vendor=head.vendor,
        figures=figures,
        scale_up_link=head.scale_up_link,
        host_link=head.host_link,
        aliases=tuple(head.aliases),
    )


def _figure(name: str, table: Mapping[str, Any], where: str) -> Quantity:
    figure = _validate(_Figure, table, f"{where}: {name}")
    try:
        return Quantity(**figure.model_dump())
    except InputError as error:
        raise InputError(f"{where}: {name}: {error}") from None


def _validate(kind: type[_M], content: Mapping[str, Any], where: str) -> _M:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise InputError(f"{where}: {key}: {problem['msg']}") from None
