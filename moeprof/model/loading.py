"""From what a user writes after MODEL to a `MoEModel`."""

from __future__ import annotations

from pathlib import Path

from moeprof.errors import ModelError
from moeprof.model.moe_model import MoEModel
from moeprof.model.presets import near_presets, preset_names


def load_model(model: str | Path | MoEModel) -> MoEModel:
    """A model by preset name, by config.json, or by a folder that holds one.

    A preset wins over a file of the same name (write `./name` for the file). Raises ModelError
    naming near presets where there is neither.
    """
    if isinstance(model, MoEModel):
        return model
    if str(model) in preset_names():
        return MoEModel.preset(str(model))
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
