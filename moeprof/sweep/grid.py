"""A grid of deployments: the values of each axis, and the product of all of them."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import isfinite, prod
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from moeprof import __version__
from moeprof.errors import InputError
from moeprof.hardware import load_hardware
from moeprof.model import load_model
from moeprof.projection import ENGINES
from moeprof.result import Result

Value: TypeAlias = str | int | float | None
MOST_POINTS = 1_000_000
_MOST_BYTES = 2**20


class Axis(NamedTuple):
    """What a value is, its least one, and the one that is meant where the grid says nothing."""

    kind: type
    least: float = 0
    default: Value = None


# In the order of the columns; the last one varies fastest.
AXES: dict[str, Axis] = {
    "model": Axis(str),
    "hardware": Axis(str),
    "engine": Axis(str, default="vllm"),
    "precision": Axis(str, default="bf16"),
    "kv_dtype": Axis(str, default="bf16"),
    "index_dtype": Axis(str, default="bf16"),
    "tp": Axis(int, 1),  # none: all GPUs over dp x pp
    "ep": Axis(int, 1, 1),
    "dp": Axis(int, 1, 1),
    "pp": Axis(int, 1, 1),
    "redundant": Axis(int, 0, 0),
    "draft_tokens": Axis(int, 0, 0),
    "accepted": Axis(float, 1, 1.0),
    "input_len": Axis(int, 1, 1024),
    "output_len": Axis(int, 1, 1024),
    "cached_len": Axis(int, 0, 0),
    "concurrency": Axis(int, 1, 1),
}


@dataclass(frozen=True)
class Grid(Result):
    """The values of every axis of `AXES`, in their order. `len` is the size of the product."""

    values: Mapping[str, Sequence[Value]] = field(hash=False)

    def __len__(self) -> int:
        return prod(len(values) for values in self.values.values())

    def point(self, number: int) -> dict[str, Value]:
        """Point `number`, from 0, as a value an axis."""
        found: dict[str, Value] = {}
        for name, values in reversed(list(self.values.items())):
            number, place = divmod(number, len(values))
            found[name] = values[place]
        return {name: found[name] for name in self.values}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the axes, of the files that they name, and of this version of moeprof."""
        parts = [__version__, json.dumps(dict(self.values))]
        named = [Path(str(v)) for name in ("model", "hardware") for v in self.values[name]]
        files = [path / "config.json" if path.is_dir() else path for path in named]
        parts += [hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_grid(path: str | Path) -> Grid:
    """The grid in the TOML file `path`: `axis = value` or `axis = [values]`, names as in `AXES`.

    Raises InputError naming the file and the axis: for what is no axis, a value of the wrong kind,
    and a model, hardware or engine that nobody knows.
    """
    path = Path(path)
    try:
        return make_grid(_read(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def make_grid(axes: Mapping[str, Any]) -> Grid:
    """A grid of values by axis. Raises InputError as `read_grid`."""
    for name in axes:
        if name not in AXES:
            near = get_close_matches(name, AXES, n=1)
            hint = f", did you mean '{near[0]}'?" if near else f"; axes are {', '.join(AXES)}"
            raise InputError(f"'{name}' is no axis of a grid{hint}")
    for name in ("model", "hardware"):
        if name not in axes:
            raise InputError(f"the grid names no {name}: {name} = [...]")
    grid = Grid({name: _values(name, axis, axes) for name, axis in AXES.items()})
    if len(grid) > MOST_POINTS:
        raise InputError(f"{len(grid):,} points, more than {MOST_POINTS:,}: split the grid")
    _check_names(grid)
    return grid


def _check_names(grid: Grid) -> None:
    for model in grid.values["model"]:
        load_model(str(model))
    for hardware in grid.values["hardware"]:
        load_hardware(str(hardware))
    for engine in grid.values["engine"]:
        if engine not in ENGINES:
            raise InputError(f"engine '{engine}' is not one of {', '.join(ENGINES)}")


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError("larger than 1 MiB, so no grid")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(error.strerror or str(error)) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"not a TOML file: {error}") from None


def _values(name: str, axis: Axis, axes: Mapping[str, Any]) -> list[Value]:
    """Of one axis, each once, in the order of the file."""
    if name not in axes:
        return [axis.default]
    given = axes[name] if isinstance(axes[name], list) else [axes[name]]
    if not given:
        raise InputError(f"{name} has no value: leave it out, or name one")
    return list(dict.fromkeys(_checked(name, axis, value) for value in given))


def _checked(name: str, axis: Axis, value: Any) -> Value:
    if axis.kind is str:
        if isinstance(value, str) and value:
            return value
        raise InputError(f"{name} = {value!r}: a name in quotes is needed")
    kinds = (int, float) if axis.kind is float else (int,)
    fine = isinstance(value, kinds) and not isinstance(value, bool) and isfinite(value)
    if not fine or value < axis.least:
        number = "a whole number" if axis.kind is int else "a number"
        raise InputError(f"{name} = {value!r}: {number} of at least {axis.least:g} is needed")
    return axis.kind(value)  # type: ignore[no-any-return]
