"""Which model a server runs, as far as it must be known to read its answers."""

from __future__ import annotations

from pathlib import Path

from moeprof.capture.server.asking import Served
from moeprof.errors import InputError, ModelError
from moeprof.model import MoEModel, load_model


def served_model(served: Served, model: str | Path | MoEModel | None) -> MoEModel:
    """What the user names, or else what the server names, if that is a preset or a folder here.

    Raises InputError if it is neither, or has no MoE layers.
    """
    found = _of_server(served) if model is None else load_model(model)
    if not found.moe_layers:
        raise InputError(f"{found.name} has no MoE layers")
    return found


def _of_server(served: Served) -> MoEModel:
    for name in dict.fromkeys([served.path, served.name]):
        try:
            return load_model(name)
        except ModelError:
            continue
    shown = "".join(c for c in served.path if c.isprintable())[:120]
    raise InputError(
        f"the server runs '{shown}', which is no preset and no folder on this machine: give "
        "--model (a preset, its config.json, or a folder that holds one)"
    )
