"""Two results of one command, as `--json` printed them: every number of one beside the other's.

Entries of a list are told apart by their names and sizes (a layer, a policy and its slots), else
by their place. Where both numbers have a band, {value, low, high} or NAME_low and NAME_high beside
NAME, the difference has one, [b.low - a.high, b.high - a.low], and is significant if it leaves out
zero. Where they have none nothing is said of significance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from moeprof.analysis.comparison.results import Difference
from moeprof.errors import InputError
from moeprof.result import Result

# What an entry of a list is, beside its texts, rather than what was found of it.
KEYS = ("layer", "slots", "batch", "gpus", "nodes", "redundant", "concurrency", "expert")


@dataclass(frozen=True)
class Changed(Result):
    """Something that is no number and differs."""

    metric: str
    a: Any
    b: Any


@dataclass(frozen=True)
class DocumentComparison(Result):
    """How the result B differs from A."""

    schema: str
    a: str
    b: str
    differences: list[Difference]  # of every number that both have
    changed: list[Changed]  # texts and flags that differ
    only_a: list[str]
    only_b: list[str]
    failed: list[str] = field(default_factory=list)


class _Number(NamedTuple):
    value: float
    low: float | None = None
    high: float | None = None


def read_document(path: Path) -> dict[str, Any] | None:
    """The JSON document of a moeprof command in file `path`, None where it is something else."""
    if not path.is_file() or path.suffix != ".json":
        return None
    try:
        document = json.loads(path.read_bytes())
    except ValueError:
        return None
    named = isinstance(document, dict) and str(document.get("schema", "")).startswith("moeprof.")
    return document if named and isinstance(document.get("result"), dict) else None


def compare_documents(
    a: Mapping[str, Any], b: Mapping[str, Any], *, names: tuple[str, str] = ("A", "B")
) -> DocumentComparison:
    """The numbers of two documents of one command, each with its name in `names`.

    Raises InputError where they are of different commands, or have no number in common.
    """
    if a["schema"] != b["schema"]:
        raise InputError(
            f"{names[0]} is {a['schema']} and {names[1]} {b['schema']}: results of one command "
            "can be compared"
        )
    one, other = dict(_leaves(a["result"], "")), dict(_leaves(b["result"], ""))
    shared = [path for path in one if path in other]
    numbers = [p for p in shared if isinstance(one[p], _Number) and isinstance(other[p], _Number)]
    if not numbers:
        raise InputError(f"{names[0]} and {names[1]} have no number in common")
    texts = [path for path in shared if path not in set(numbers)]
    return DocumentComparison(
        schema=a["schema"],
        a=names[0],
        b=names[1],
        differences=[_difference(path, one[path], other[path]) for path in numbers],
        changed=[Changed(p, _plain(one[p]), _plain(other[p])) for p in texts if one[p] != other[p]],
        only_a=[path for path in one if path not in other],
        only_b=[path for path in other if path not in one],
    )


def _difference(path: str, a: _Number, b: _Number) -> Difference:
    effect = b.value - a.value
    low = high = None
    if a.low is not None and a.high is not None and b.low is not None and b.high is not None:
        low, high = b.low - a.high, b.high - a.low
    return Difference(
        metric=path,
        a=a.value,
        b=b.value,
        effect=effect,
        relative=effect / a.value if a.value else None,
        low=low,
        high=high,
        p=None,
        q=None,
        significant=low is not None and high is not None and (low > 0 or high < 0),
    )


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, _Number or text) of everything below `value`."""
    if isinstance(value, Mapping):
        yield from _of_mapping(value, path)
    elif isinstance(value, list):
        for name, item in _named(value):
            yield from _leaves(item, f"{path}[{name}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, _Number(float(value))
    else:
        yield path, value


def _of_mapping(value: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    if {"value", "low", "high"} <= value.keys() and _is_number(value["value"]):
        yield path, _Number(*(value[part] for part in ("value", "low", "high")))
        return
    bounds = {f"{key}_{end}" for key in value for end in ("low", "high")}
    for key, item in value.items():
        if key in bounds:  # of another number, which it stands with
            continue
        name = f"{path}.{key}" if path else key
        low, high = value.get(f"{key}_low"), value.get(f"{key}_high")
        if _is_number(item) and _is_number(low) and _is_number(high):
            yield name, _Number(float(item), low, high)
        else:
            yield from _leaves(item, name)


def _named(items: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """The entries of a list by what they are, by their place where that is not one's own."""
    names = [_name(item) for item in items]
    own = len(set(names)) == len(names) and "" not in names
    yield from zip(names if own else map(str, range(len(items))), items, strict=True)


def _name(item: Any) -> str:
    if not isinstance(item, Mapping):
        return ""
    parts = [
        f"{k}={v}" for k, v in item.items() if isinstance(v, str) or (k in KEYS and v is not None)
    ]
    return ",".join(parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, _Number) else value
