"""The tensors of vision towers: one encoder common to all, and what each kind puts around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from moeprof.model.config_fields import (
    ClipFields,
    MoonVitFields,
    QwenVisionFields,
    VisionFields,
    vision_fields,
)
from moeprof.model.tensors import TensorGroup


def vision_tensors(
    tower: str, config: Mapping[str, Any], text_hidden: int, where: str
) -> list[TensorGroup]:
    """Every tensor of the tower and of the projector into the language model, both with biases.

    `tower` is a name in `TOWERS`, `text_hidden` the hidden size of the language model.
    """
    return TOWERS[tower](config, text_hidden, where)


def _clip(config: Mapping[str, Any], text_hidden: int, where: str) -> list[TensorGroup]:
    vision = vision_fields(ClipFields, config, where)
    projector, merged = vision.projector_width, text_hidden * vision.spatial_merge_size**2
    return [
        _patches(vision, vision.temporal_patch_size),
        *_encoder(vision, norms=1),
        *_biased("projector_1", (projector, vision.hidden_size)),
        *_biased("projector_2", (text_hidden, projector)),
        *_biased("merge_1", (projector, merged)),
        *_biased("merge_2", (text_hidden, projector)),
    ]


def _qwen(config: Mapping[str, Any], text_hidden: int, where: str) -> list[TensorGroup]:
    vision = vision_fields(QwenVisionFields, config, where)
    merged, mergers = vision.hidden_size * vision.spatial_merge_size**2, 1
    groups = [
        _patches(vision, vision.temporal_patch_size),
        _vector("patch_embedding_bias", vision.hidden_size, 1),
        TensorGroup("vision", "positions", (vision.positions, vision.hidden_size), 1),
        *_encoder(vision, norms=1),  # the merger's own norm is as wide as a layer's
    ]
    if vision.deepstack_layers:
        groups.append(_vector("deepstack_norm", merged, 2 * len(vision.deepstack_layers)))
        mergers += len(vision.deepstack_layers)
    groups += _biased("merge_1", (merged, merged), mergers)
    return groups + _biased("merge_2", (vision.output_size, merged), mergers)


def _moonvit(config: Mapping[str, Any], text_hidden: int, where: str) -> list[TensorGroup]:
    vision = vision_fields(MoonVitFields, config, where)
    merged = vision.hidden_size * prod(vision.merge_kernel)
    table = (vision.position_rows, vision.position_columns, vision.hidden_size)
    return [
        _patches(vision),
        _vector("patch_embedding_bias", vision.hidden_size, 1),
        TensorGroup("vision", "positions", table, 1),
        *_encoder(vision, norms=1),  # after the last layer
        _vector("projector_norm", vision.projector_input, 2),
        *_biased("projector_1", (merged, merged)),
        *_biased("projector_2", (text_hidden, merged)),
    ]


TOWERS: dict[str, Callable[[Mapping[str, Any], int, str], list[TensorGroup]]] = {
    "clip": _clip,
    "qwen": _qwen,
    "moonvit": _moonvit,
}


def _encoder(vision: VisionFields, norms: int) -> list[TensorGroup]:
    """All layers, and `norms` norms of the same width beside the two of each."""
    hidden, width, layers = vision.hidden_size, vision.width, vision.layers
    return [
        _vector("layer_norm", hidden, 2 * (2 * layers + norms)),  # weight and bias
        *_biased("attention_proj", (hidden, hidden), 4 * layers),
        *_biased("fc1", (width, hidden), layers),
        *_biased("fc2", (hidden, width), layers),
    ]


def _patches(vision: VisionFields, *frames: int) -> TensorGroup:
    shape = (vision.hidden_size, vision.channels, *frames, vision.patch_size, vision.patch_size)
    return TensorGroup("vision", "patch_embedding", shape, 1)


def _biased(name: str, shape: tuple[int, int], count: int = 1) -> list[TensorGroup]:
    return [
        TensorGroup("vision", name, shape, count),
        _vector(f"{name}_bias", shape[0], count),
    ]


def _vector(name: str, length: int, count: int) -> TensorGroup:
    return TensorGroup("vision", name, (length,), count)
