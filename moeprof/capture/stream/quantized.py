"""Quantized checkpoints, seen as the plain ones they were made of.

By its name, its type and the scales beside it a tensor tells how it is stored, so that mixed
checkpoints need no table of modules: what is stored plainly is read plainly. A decoded tensor is
made when it is asked for, and only then read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeprof.capture.stream import decoding
from moeprof.capture.stream.checkpoint import StoredTensor
from moeprof.capture.stream.formats import Decode, Formats
from moeprof.errors import InputError

if TYPE_CHECKING:
    import torch

METHODS = (
    "fp8", "mxfp8", "mxfp4", "modelopt", "compressed-tensors", "quark", "awq", "gptq", "auto-round",
)  # fmt: skip
REMEDY = "use the checkpoint in BF16, FP16 or FP32"


@dataclass(frozen=True)
class DecodedTensor:
    """One tensor of the model, made of several on disk. `decoded[...]` reads and decodes them."""

    parts: tuple[StoredTensor, ...]
    decode: Decode
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def working_bytes(self) -> int:
        """What decoding takes beside the result and what is stored, at most."""
        weights = math.prod(self.shape)
        return decoding.LAID_ANEW_BYTES * weights + decoding.CHUNK_BYTES * decoding.CHUNK

    def rows(self) -> Iterator[DecodedTensor]:
        """Itself, or [1, ...] of each matrix, where all parts are stacks of what matrices have."""
        count = self.shape[0]
        if len(self.shape) < 3 or any(part.shape[:1] != (count,) for part in self.parts):
            yield self
            return
        for number in range(count):
            parts = tuple(part.row(number) for part in self.parts)
            yield replace(self, parts=parts, shape=(1, *self.shape[1:]))

    def put(self, stored: Sequence[torch.Tensor], place: torch.Tensor) -> None:
        """Decode `stored`, its parts, to `place`, wherever that is."""
        import torch

        if place.device.type == "cpu":
            self.decode(*stored, out=place)
        else:
            decoded = torch.empty(place.shape, dtype=place.dtype)
            self.decode(*stored, out=decoded)
            place.copy_(decoded)

    def __getitem__(self, everything: Any) -> torch.Tensor:
        """The tensor on the CPU, of the type the checkpoint is decoded to."""
        import torch

        decoded = torch.empty(self.shape, dtype=self.dtype)
        self.put([part[...] for part in self.parts], decoded)
        return decoded


def decode_checkpoint(
    folder: Path,
    tensors: Mapping[str, StoredTensor],
    settings: Mapping[str, Any],
    dtype: torch.dtype,
) -> dict[str, StoredTensor | DecodedTensor]:
    """By the names of the unquantized checkpoint, its tensors, those that are quantized in `dtype`.

    `settings` is the quantization_config of the model, empty if it has none. Raises InputError,
    before any tensor is read, for a method or a tensor that cannot be decoded.
    """
    _check_method(folder, settings, tensors)
    tensors = {
        name: replace(tensor, dtype="U8") if tensor.dtype == "F8_E8M0" else tensor
        for name, tensor in tensors.items()
    }
    plain: dict[str, StoredTensor | DecodedTensor] = dict(tensors)
    reader = Formats(tensors, settings)
    for name in tensors:
        for target, keys, decode, shape in reader.read(name):
            for key in keys:
                plain.pop(key, None)
            parts = tuple(tensors[key] for key in keys)
            plain[target] = DecodedTensor(parts, decode, shape, dtype)
    for name, tensor in plain.items():
        if isinstance(tensor, StoredTensor) and _is_coded(name, tensor):
            raise InputError(
                f"{folder}: {name} is quantized ({tensor.dtype}) in a way that stream cannot "
                f"decode: {REMEDY}"
            )
    return plain


def quantization_of(config: Any) -> dict[str, Any]:
    """The quantization_config of a transformers configuration or its text part; empty if none."""
    for part in (config, config.get_text_config()):
        found = getattr(part, "quantization_config", None)
        if found:
            return dict(found if isinstance(found, dict) else found.to_dict())
    return {}


def _check_method(
    folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> None:
    method = settings.get("quant_method", "modelopt")  # whose settings may lie in another file
    why = None
    if method not in METHODS:
        why = method
    elif settings.get("transform_config") or "rotation" in str(settings.get("algo_config")):
        why = f"{method} of rotated weights"
    elif (settings.get("sparsity_config") or {}).get("format", "dense") != "dense":
        why = f"{method} of compressed sparse weights"
    elif method == "awq" and settings.get("version", "gemm").lower() != "gemm":
        why = f"AWQ in the format {settings['version']}"
    elif method == "auto-round" and "gptq" not in settings.get("packing_format", ""):
        why = "auto-round that is not packed as GPTQ packs"
    elif any(name.endswith("pre_quant_scale") for name in tensors):
        why = f"{method} with scaled activations"
    if why:
        raise InputError(
            f"{folder}: its weights are quantized ({why}), which stream cannot decode: {REMEDY}"
        )


def _is_coded(name: str, tensor: StoredTensor) -> bool:
    """Whether the tensor must be a weight that is not stored as numbers."""
    if tensor.dtype == "I32":
        return name.endswith(("qweight", "_packed"))
    coded = tensor.dtype.startswith(("F8", "F4", "F6")) or tensor.dtype in ("U8", "I8")
    return coded and len(tensor.shape) > 1
