"""Write docs/api.md from the docstrings of what is public; with --check, fail if it differs."""

from __future__ import annotations

import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import moeprof

HEAD = """# Python reference

Generated from docstrings by `python docs/api.py`; do not edit.

All of it is `moeprof.NAME`. Results are frozen dataclasses with `.to_dict()`, what is written as
`--json` is the same; errors are those of `moeprof/errors.py`, below `MoeprofError`. What a command
does is one of these functions ([cli.md](cli.md)); [glossary.md](glossary.md) has the words.
"""
STEPS = {
    "trace": "Recordings",
    "capture": "Recording",
    "analysis": "Analysis",
    "cache": "Caches",
    "placement": "Placement",
    "offload": "Offload",
    "model": "Models",
    "hardware": "Hardware",
    "projection": "Projection",
    "synth": "Synthetic routing",
    "sweep": "Sweeps",
    "report": "Reports",
}
LONGEST = 88


def reference() -> str:
    """The whole page."""
    by_step: dict[str, list[str]] = defaultdict(list)
    for name in moeprof.__all__:
        thing = getattr(moeprof, name)
        if not name.startswith("_"):
            step = thing.__module__.split(".")[1]
            by_step[STEPS.get(step, "What belongs to all")].append(described(name, thing))
    titles = [title for title in dict.fromkeys([*STEPS.values(), *by_step]) if title in by_step]
    return "\n".join([HEAD, *(f"## {title}\n\n" + "\n".join(by_step[title]) for title in titles)])


def described(name: str, thing: Any) -> str:
    """Heading, signature, docstring, and what it has or returns."""
    parts = [f"### {name}", f"```python\n{signature(name, thing)}\n```", prose(thing)]
    parts += members(thing) if inspect.isclass(thing) else returned(thing)
    return "\n\n".join(part for part in parts if part) + "\n"


def signature(name: str, thing: Any) -> str:
    """As one would type it, a parameter a line where it is long."""
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return f"class {name}({thing.__base__.__name__})"
    if inspect.isclass(thing) and issubclass(thing, Enum):
        return f"class {name}({', '.join(f'{member.name} = {member.value!r}' for member in thing)})"
    plain = inspect.signature(thing)
    given = [argument for argument in arguments(plain) if argument not in ("self", "cls")]
    arrow = "" if inspect.isclass(thing) else f" -> {plain.return_annotation}"
    head = f"class {name}" if inspect.isclass(thing) else name
    line = f"{head}({', '.join(given)}){arrow}"
    if len(line) <= LONGEST:
        return line
    return "\n".join([f"{head}(", *(f"    {argument}," for argument in given), f"){arrow}"])


def arguments(plain: inspect.Signature) -> Iterator[str]:
    """`name: type = default` of each, and the star before those that must be named."""
    starred = False
    for parameter in plain.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            starred = True
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        text = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
        text += parameter.name
        if parameter.annotation is not inspect.Parameter.empty:
            text += f": {parameter.annotation}"
        if parameter.default is not inspect.Parameter.empty:
            text += f" = {shown(parameter.default)}"
        yield text


def shown(default: Any) -> str:
    """A default without an address in memory."""
    if isinstance(default, Enum):
        return str(default)
    if callable(default):
        return str(default.__name__)
    text = repr(default)
    return "..." if " at 0x" in text or "_HAS_DEFAULT_FACTORY" in text or len(text) > 60 else text


def prose(thing: Any) -> str:
    """The docstring; what stands indented in it is code."""
    text = inspect.getdoc(thing) or ""
    return re.sub(r"\[(?=[^\]]*\](\(|\[))", r"\\[", text)


def members(kind: type) -> list[str]:
    """Public methods and properties that the class itself has, with the first line of each."""
    lines = []
    for name, value in vars(kind).items():
        target = getattr(value, "__func__", getattr(value, "fget", value))
        said = inspect.getdoc(target) if inspect.isfunction(target) else None
        if said and not name.startswith("_"):
            call = "" if isinstance(value, property) else "()"
            lines.append(f"- `{name}{call}`: {said.splitlines()[0]}")
    return ["\n".join(lines)]


def returned(function: Any) -> list[str]:
    """The fields of the result, where it has any."""
    function = inspect.unwrap(function)
    said = inspect.signature(function).return_annotation
    result = vars(sys.modules[function.__module__]).get(said)  # others' types are not imported
    if not is_dataclass(result) or result.__name__ in moeprof.__all__:
        return []
    names = ", ".join(f"`{field.name}: {field.type}`" for field in fields(result))
    return [f"`{result.__name__}` holds {names}."]


def run() -> int:
    """Write the page, or compare it."""
    page, path = reference(), Path(__file__).with_name("api.md")
    if "--check" not in sys.argv:
        path.write_text(page)
    elif not path.exists() or path.read_text() != page:
        sys.stderr.write("docs/api.md is not what docstrings say: python docs/api.py\n")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(run())
