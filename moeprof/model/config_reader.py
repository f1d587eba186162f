"""From a config.json to a `MoEModel`: find the file, check it, settle defaults, count tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moeprof.errors import ModelError
from moeprof.model.architectures import Architecture, architecture_of
from moeprof.model.config_fields import ConfigFields, text_fields, vision_fields
from moeprof.model.config_keys import UNCOUNTED_KEYS, text_part
from moeprof.model.inventory import Layout, list_tensors
from moeprof.model.layer_pattern import indexed_layers, moe_layers
from moeprof.model.moe_model import Attention, Indexer, MoEModel
from moeprof.model.tensors import TensorGroup


def read_model(
    config: str | Path | Mapping[str, Any], *, name: str | None, count_tensors: bool
) -> MoEModel:
    """See `MoEModel.from_config`."""
    content, where, default_name = _content(config)
    model_type = _model_type(content, where)
    fields = text_fields(content, where)
    routing = moe_layers(fields, where)
    experts = fields.experts if routing else 0
    if routing and fields.top_k is None:
        raise ModelError(f"{where}: num_experts_per_tok is missing for {experts} experts")
    indexed = indexed_layers(fields, where) if count_tensors else ()
    tensors: tuple[TensorGroup, ...] = ()
    if count_tensors:
        tensors = _tensors(content, fields, model_type, where, len(routing), len(indexed))
    return MoEModel(
        name=name or default_name or model_type,
        model_type=model_type,
        hidden_size=fields.hidden_size,
        layers=fields.layers,
        moe_layers=routing,
        experts=experts,
        top_k=(fields.top_k or 0) if routing else 0,
        shared_experts=_shared_experts(fields) if routing else 0,
        expert_intermediate_size=(_expert_width(fields) or 0) if routing else 0,
        vocab_size=fields.vocab_size,
        max_positions=fields.max_positions,
        tied_embeddings=bool(fields.tied_embeddings),
        attention=_attention(fields, where) if count_tensors else None,
        indexer=_indexer(fields, len(indexed)),
        tensors=tensors,
    )


def _content(config: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str, str]:
    """The configuration, how messages call it, and a name for the model."""
    if isinstance(config, Mapping):
        return config, "configuration", str(config.get("_name_or_path") or "")
    path = Path(config)
    if path.is_dir():
        path = path / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, Mapping):
        raise ModelError(f"{path}: holds a {type(content).__name__}, not an object")
    return content, str(path), path.resolve().parent.name


def _model_type(content: Mapping[str, Any], where: str) -> str:
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ModelError(f"{where}: model_type is missing")
    return model_type


def _tensors(
    content: Mapping[str, Any],
    fields: ConfigFields,
    model_type: str,
    where: str,
    moe_layer_count: int,
    indexed_layer_count: int,
) -> tuple[TensorGroup, ...]:
    _refuse_uncounted(content, where)
    architecture = architecture_of(model_type, where)
    attention = _attention(fields, where)
    layout = Layout(
        fields=fields,
        architecture=architecture,
        where=where,
        head_dim=attention.head_dim,
        kv_heads=attention.kv_heads,
        moe_layers=moe_layer_count,
        indexed_layers=indexed_layer_count,
        expert_width=_required_expert_width(fields, where) if moe_layer_count else 0,
        shared_experts=_shared_experts(fields),
    )
    vision = vision_fields(content, where) if _has_vision(content, architecture, where) else None
    return list_tensors(layout, vision)


def _refuse_uncounted(content: Mapping[str, Any], where: str) -> None:
    text = text_part(content)
    for key, meaning in UNCOUNTED_KEYS.items():
        if text.get(key) not in (None, 0):
            raise ModelError(f"{where}: {key}: {meaning} cannot be counted exactly yet")


def _has_vision(content: Mapping[str, Any], architecture: Architecture, where: str) -> bool:
    """M3's tower has its own keys; a vision tower of another kind is refused, not left out."""
    if architecture.vision:
        return True
    if content.get("vision_config"):
        raise ModelError(f"{where}: vision_config: this vision tower cannot be counted exactly yet")
    return False


def _attention(fields: ConfigFields, where: str) -> Attention:
    if fields.heads % fields.kv_heads:
        raise ModelError(
            f"{where}: num_attention_heads {fields.heads} is no multiple of "
            f"num_key_value_heads {fields.kv_heads}"
        )
    if fields.head_dim is None and fields.hidden_size % fields.heads:
        raise ModelError(
            f"{where}: head_dim is missing, and hidden_size {fields.hidden_size} is no multiple of "
            f"num_attention_heads {fields.heads}"
        )
    head_dim = fields.head_dim or fields.hidden_size // fields.heads
    return Attention(fields.heads, fields.kv_heads, head_dim)


def _indexer(fields: ConfigFields, layers: int) -> Indexer | None:
    if not layers or fields.index_heads is None or fields.index_head_dim is None:
        return None
    return Indexer(
        layers,
        fields.index_heads,
        fields.index_head_dim,
        fields.index_block_size,
        fields.index_top_blocks,
    )


def _expert_width(fields: ConfigFields) -> int | None:
    """`moe_intermediate_size`; families without it call the expert's width intermediate_size."""
    return fields.moe_width or fields.width


def _required_expert_width(fields: ConfigFields, where: str) -> int:
    width = _expert_width(fields)
    if width is None:
        raise ModelError(f"{where}: moe_intermediate_size or intermediate_size is missing")
    return width


def _shared_experts(fields: ConfigFields) -> int:
    """How many; one where only its width is stated."""
    if fields.shared_experts is not None:
        return fields.shared_experts
    return 1 if fields.shared_width else 0
