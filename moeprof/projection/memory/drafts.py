"""Draft models of speculative decoding: what they load, and their KV."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from moeprof.errors import InputError
from moeprof.model import Attention, MoEModel, weight_format
from moeprof.model.attention import kv_bytes_per_token_per_rank
from moeprof.quantity import Provenance, Quantity
from moeprof.result import Result

_FORMAT = "bf16"


@dataclass(frozen=True)
class Draft(Result):
    """A draft of `layers` dense layers; `parameters` is what it loads beside its target."""

    name: str
    layers: int
    kv_heads: int
    head_dim: int
    parameters: Quantity

    def weight_bytes(self, tp: int) -> Quantity:
        """Bytes in BF16 on one of `tp` ranks, over which the target's engine slices it too."""
        each = weight_format(_FORMAT).bits_per_weight / 8 / tp
        whole = self.parameters
        return Quantity(
            whole.value * each,
            "bytes",
            whole.provenance,
            None if whole.low is None else whole.low * each,
            None if whole.high is None else whole.high * each,
            f"{whole.source}; in BF16, sliced {tp} ways",
        )

    def kv_bytes_per_token(self, tp: int, kv_dtype: str) -> int:
        """KV bytes of a token on one of `tp` ranks, in the format of the target's KV."""
        heads = Attention(self.kv_heads, self.kv_heads, self.head_dim)
        return kv_bytes_per_token_per_rank(heads, self.layers, tp, kv_dtype)


def draft_names(model: MoEModel | None = None) -> tuple[str, ...]:
    """Names of the drafts that are known, or of those for `model`."""
    return tuple(
        entry["name"]
        for entry in _known()
        if model is None or model.model_type in entry["model_types"]
    )


def load_draft(name: str | Draft, model: MoEModel) -> Draft:
    """The draft called `name` of `model`. Raises InputError naming those that there are."""
    if isinstance(name, Draft):
        return name
    for entry in _known():
        if entry["name"] == name.lower() and model.model_type in entry["model_types"]:
            return _draft(entry)
    known = ", ".join(draft_names(model)) or "none"
    raise InputError(f"no draft '{name}' is known for {model.name}; known: {known}")


def _draft(entry: dict[str, Any]) -> Draft:
    parameters = Quantity(
        entry["parameters"],
        "parameters",
        Provenance(entry["provenance"]),
        entry["parameters_low"],
        entry["parameters_high"],
        entry["source"],
    )
    sizes = {key: entry[key] for key in ("name", "layers", "kv_heads", "head_dim")}
    return Draft(**sizes, parameters=parameters)


@cache
def _known() -> list[dict[str, Any]]:
    text = files("moeprof.projection.memory").joinpath("drafts.toml").read_text(encoding="utf-8")
    known: list[dict[str, Any]] = tomllib.loads(text)["draft"]
    return known
