"""From what a user writes after MODEL to a `MoEModel`."""

from __future__ import annotations

import re
from pathlib import Path

from moeprof.errors import ModelError
from moeprof.model.moe_model import MoEModel
from moeprof.model.presets import near_presets, preset_names

# What hub ids append to a model's name without changing its shape: training, date, precision.
_VARIANT = re.compile(
    r"(-(instruct|chat|base|it|hf|thinking|text|exp|terminus|\d{4}|bf16|fp8|fp4|mxfp8|mxfp4|"
    r"nvfp4|int4|int8|awq|gptq|w4a16|w8a8|dynamic|block|gguf|mlx))+$"
)


def load_model(model: str | Path | MoEModel) -> MoEModel:
    """A model by preset name, by hub id of a preset, by config.json, or by a folder that holds one.

    A preset wins over a file of the same name (write `./name` for the file). A hub id
    (`Qwen/Qwen3-235B-A22B-Instruct-2507`) is looked up among the presets, never on the network.
    Raises ModelError naming near presets where there is none of them.
    """
    if isinstance(model, MoEModel):
        return model
    preset = _preset_of(str(model))
    if preset is not None:
        return MoEModel.preset(preset)
    path = Path(model)
    try:
        found, without_config = (
            path.exists(),
            path.is_dir() and not (path / "config.json").is_file(),
        )
    except OSError as error:  # a name that no file can have
        raise ModelError(f"'{model}' is no preset and no file: {error.strerror}") from None
    if without_config:
        raise ModelError(f"{path}: this folder holds no config.json")
    if found:
        return MoEModel.from_config(path)
    raise ModelError(f"'{model}' is no preset and no file; {near_presets(str(model))}")


def _preset_of(name: str) -> str | None:
    """The preset that `name` or the hub id `owner/name` means, if one does."""
    names = preset_names()
    if name in names:
        return name
    owner, slash, tail = name.partition("/")
    if not slash or owner.startswith(".") or "/" in tail or Path(name).exists():
        return None
    tail = tail.lower()
    bare = _VARIANT.sub("", tail)
    return next((found for found in (tail, bare) if found in names), None)
