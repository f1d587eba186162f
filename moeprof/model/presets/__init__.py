"""Configurations that ship with moeprof, each a config.json with its `_source`."""

from __future__ import annotations

import difflib
import json
from functools import cache
from importlib.resources import files
from typing import Any

from moeprof.errors import ModelError


@cache
def preset_names() -> tuple[str, ...]:
    """Names of the presets, sorted."""
    folder = files("moeprof.model.presets")
    return tuple(
        sorted(
            entry.name.removesuffix(".json")
            for entry in folder.iterdir()
            if entry.name.endswith(".json")
        )
    )


def read_preset(name: str) -> dict[str, Any]:
    """The configuration of a preset. Raises ModelError naming near presets where it is unknown."""
    if name not in preset_names():
        raise ModelError(f"no model preset '{name}'; {near_presets(name)}")
    text = files("moeprof.model.presets").joinpath(f"{name}.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def near_presets(name: str) -> str:
    """A hint for a message: the presets closest to `name`, or all of them."""
    near = difflib.get_close_matches(name.lower(), preset_names(), n=3, cutoff=0.4)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"presets: {', '.join(preset_names())}"
