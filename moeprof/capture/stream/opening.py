"""A checkpoint and the model it is of, opened without reading a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeprof.capture.stream.checkpoint import StoredTensor, open_checkpoint
from moeprof.capture.stream.formats import FLOATS
from moeprof.capture.stream.places import Places
from moeprof.capture.stream.quantized import decode_checkpoint, quantization_of
from moeprof.capture.stream.skeleton import Skeleton, build_skeleton
from moeprof.capture.stream.turns import LayerTurns
from moeprof.capture.transformers.record import describe_config
from moeprof.capture.transformers.routers.finding import (
    UNFAITHFUL,
    RouterSite,
    find_router_sites,
)
from moeprof.capture.transformers.run import DTYPES, model_class
from moeprof.errors import InputError, MissingExtraError, MoeprofError
from moeprof.model import MoEModel

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint and the model it is of."""

    skeleton: Skeleton
    described: MoEModel
    sites: dict[int, list[RouterSite]]
    places: Places
    signature: dict[str, Any]  # what must be the same for a run to go on

    @cached_property
    def turns(self) -> LayerTurns:
        """Runs one layer of it at a time."""
        model = self.skeleton.model
        return LayerTurns(
            model.get_submodule(self.places.text), model.get_submodule(self.places.layers)
        )

    @property
    def text_config(self) -> Any:
        """The configuration of the model that reads text."""
        return self.skeleton.model.config.get_text_config()


def open_model(
    folder: Path, device: str | None, dtype: str, *, trust_remote_code: bool = False
) -> OpenedModel:
    """The checkpoint in `folder` and its model without weights. Raises InputError."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", "capture") from None
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; stream reads a checkpoint on this machine")
    tensors = open_checkpoint(folder)
    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    code = {"trust_remote_code": trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        _check_config(folder, config)
        described = describe_config(config)
        kept_as = _dtype_of(config, tensors) if dtype == "auto" else getattr(torch, dtype)
        model = build_skeleton(config, model_class(config), kept_as, **code)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=where)
        sites = find_router_sites(model, described.moe_layers, described.experts)
        places = Places.of(model, sites)
        decoded = decode_checkpoint(folder, tensors, quantization_of(config), kept_as)
        skeleton = Skeleton(model, decoded, kept_as, where)
    except MoeprofError:
        raise
    except Exception as error:  # whatever a model's files and its libraries may raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{folder}: cannot be streamed: {reason[:300]}") from None
    signature = {
        "config": config.to_dict(),
        "files": _file_marks(tensors),
        "dtype": str(kept_as),
        "device": where.type,
        "transformers": transformers.__version__,
    }
    return OpenedModel(skeleton, described, sites, places, signature)


def _check_config(folder: Path, config: Any) -> None:
    """Refuse what would be read wrongly, by name."""
    for part in (config, config.get_text_config()):
        if part.model_type in UNFAITHFUL:
            why = UNFAITHFUL[part.model_type]
            raise InputError(f"{part.model_type} cannot be recorded: {why}")
        if "reuse" in (getattr(part, "kv_sharing_modes", None) or ()):
            raise InputError(
                f"{folder}: its layers use each other's keys and values (kv_sharing_modes), and "
                "hidden states alone are kept between layers: it cannot be streamed"
            )
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{folder}: is an encoder-decoder; record decoder-only models")


def _dtype_of(config: Any, tensors: Mapping[str, StoredTensor]) -> torch.dtype:
    """As the configuration says, or as the checkpoint's largest tensor that is not quantized."""
    import torch
    from safetensors.torch import _TYPES

    for part in (config, config.get_text_config()):
        said = getattr(part, "dtype", None)
        if isinstance(said, torch.dtype):
            return said
    plain = [tensor for tensor in tensors.values() if tensor.dtype in FLOATS]
    if not plain:
        return torch.bfloat16
    largest = max(plain, key=lambda tensor: tensor.nbytes)
    found: torch.dtype = _TYPES[largest.dtype]
    return found


def _file_marks(tensors: Mapping[str, StoredTensor]) -> list[tuple[str, int, int]]:
    files = sorted({tensor.file for tensor in tensors.values()})
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
