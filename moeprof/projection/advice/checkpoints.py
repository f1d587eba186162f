"""Where a checkpoint is: its hub id, or a folder that the reader has to fill."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from moeprof.model import MoEModel, Precision

# The first hub id that the source of a precision names.
_HUB_ID = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)")


def checkpoint_of(model: MoEModel, precision: Precision) -> str:
    """The hub id, with a tag behind a colon for GGUF; `./MODEL-PRECISION` where none is known."""
    listed = _listed().get(model.name, {})
    if precision.name in listed:
        return listed[precision.name]
    named = _HUB_ID.search(precision.source)
    if named and _is_about(model, named[1]):
        return named[1].rstrip(".")
    return f"./{model.name}-{precision.name}"


def draft_checkpoint(draft: str | None) -> str | None:
    """The hub id of a draft model by name; None where it is not known."""
    return _listed()["drafts"].get(draft or "")


def _is_about(model: MoEModel, hub_id: str) -> bool:
    """Whether the id is of this model: a layout by habit names another's checkpoint."""
    return model.name.lower() in hub_id.lower()


@cache
def _listed() -> Mapping[str, Mapping[str, str]]:
    text = files("moeprof.projection.advice").joinpath("checkpoints.toml")
    return tomllib.loads(text.read_text(encoding="utf-8"))
