"""What a checkpoint stores its tensors in: a weight format per tensor class.

Real checkpoints are mixed, so a precision is a map and never one number of bits. Published maps
stand in `precisions.toml` with their sources; a format without an entry there is laid out by the
habit of its tools, and then everything computed from it is marked `assumed`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from moeprof.errors import InputError, ModelError
from moeprof.model.formats import FORMAT_ALIASES, WeightFormat, weight_format
from moeprof.model.tensors import TENSOR_CLASSES, TensorGroup
from moeprof.quantity import Provenance
from moeprof.result import Result

if TYPE_CHECKING:
    from moeprof.model.moe_model import MoEModel

_UNQUANTIZED = weight_format("bf16")


@dataclass(frozen=True)
class Precision(Result):
    """Format names by tensor class, and by tensor name where one tensor differs from its class.

    A name in `exceptions` is a tensor's (`down_proj`) or one of a single class
    (`routed.down_proj`). Norm weights and biases stay BF16 where their class is quantized. Classes
    in `absent` are not in the checkpoint: a text-only one has no vision tower.
    """

    name: str
    formats: Mapping[str, str] = field(hash=False)
    exceptions: Mapping[str, str] = field(hash=False, default_factory=dict)
    absent: tuple[str, ...] = ()
    provenance: Provenance = Provenance.ASSUMED
    source: str = ""

    def __post_init__(self) -> None:
        if set(self.formats) | set(self.absent) != set(TENSOR_CLASSES):
            wrong = sorted({*self.formats, *self.absent} ^ set(TENSOR_CLASSES))
            raise InputError(f"precision '{self.name}': tensor classes missing or unknown: {wrong}")
        for name in (*self.formats.values(), *self.exceptions.values()):
            weight_format(name)

    def format_of(self, group: TensorGroup) -> WeightFormat:
        """The format that `group` is stored in."""
        own = self.exceptions.get(group.name, self.formats[group.tensor_class])
        chosen = weight_format(self.exceptions.get(f"{group.tensor_class}.{group.name}", own))
        return _UNQUANTIZED if group.is_vector and chosen.family != "plain" else chosen

    def group_bytes(self, group: TensorGroup) -> int:
        """Bytes of all tensors of `group`; 0 where the checkpoint leaves its class out."""
        if group.tensor_class in self.absent:
            return 0
        return group.count * self.format_of(group).tensor_bytes(group.shape)


def load_precision(precision: str | Mapping[str, str] | Precision, model: MoEModel) -> Precision:
    """The precision of a checkpoint of `model`.

    `precision` is a published map's name, a weight format, or a map tensor class -> format whose
    missing classes are BF16. A published map holds for the model types it names; for another
    model, and for a bare format, the layout is assumed. Raises InputError for an unknown name.
    """
    if isinstance(precision, Precision):
        return precision
    if not isinstance(precision, str):
        formats = {**dict.fromkeys(TENSOR_CLASSES, "bf16"), **precision}
        return Precision("custom", formats, {}, (), Provenance.SPECIFIED, "given by the caller")
    table = _published()
    name = FORMAT_ALIASES.get(precision.lower(), precision.lower())
    for entry in table["precision"]:
        if entry["name"] == name and model.model_type in entry["model_types"]:
            return _published_precision(entry)
    return _by_habit(weight_format(precision), table["habit"])


def weight_bytes(model: MoEModel, precision: str | Mapping[str, str] | Precision) -> dict[str, int]:
    """Bytes of the checkpoint per tensor class, every class present.

    Modules for multi-token prediction, which only speculation loads, are left out. Raises
    ModelError where the tensors of `model` were not counted.
    """
    loaded = load_precision(precision, model)
    sizes = dict.fromkeys(TENSOR_CLASSES, 0)
    for group in model.counted_tensors():
        sizes[group.tensor_class] += loaded.group_bytes(group)
    return sizes


def precision_names(model: MoEModel | None = None) -> tuple[str, ...]:
    """Names of the published maps, or of those for `model`; every weight format is a precision
    beside them."""
    entries = _published()["precision"]
    if model is not None:
        entries = [entry for entry in entries if model.model_type in entry["model_types"]]
    return tuple(dict.fromkeys(entry["name"] for entry in entries))


@cache
def _published() -> dict[str, Any]:
    text = files("moeprof.model").joinpath("precisions.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _published_precision(entry: Mapping[str, Any]) -> Precision:
    return Precision(
        name=entry["name"],
        formats={**dict.fromkeys(TENSOR_CLASSES, "bf16"), **entry["formats"]},
        exceptions=entry.get("exceptions", {}),
        absent=tuple(entry.get("absent", ())),
        provenance=Provenance(entry["provenance"]),
        source=entry["source"],
    )


def _by_habit(chosen: WeightFormat, habits: list[Mapping[str, Any]]) -> Precision:
    for habit in habits:
        if chosen.family == habit["family"]:
            formats = dict.fromkeys(TENSOR_CLASSES, chosen.name) | habit["unquantized"]
            provenance = Provenance(habit["provenance"])
            return Precision(chosen.name, formats, {}, (), provenance, habit["source"])
    raise ModelError(f"no habit is known for weight formats of the family '{chosen.family}'")
