"""From a config.json to a `MoEModel`: find the file, check it, settle defaults, count tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moeprof.errors import ModelError
from moeprof.model.architectures import Architecture, architecture_of
from moeprof.model.attention import Attention, Indexer, LinearAttention
from moeprof.model.config_fields import ConfigFields, RoutingFields, required, text_fields
from moeprof.model.config_keys import UNCOUNTED_KEYS, text_part
from moeprof.model.inventory import list_prediction_tensors, list_tensors
from moeprof.model.layer_pattern import indexed_layers, linear_layers, moe_layers, sliding_layers
from moeprof.model.layout import Layout
from moeprof.model.moe_model import MoEModel
from moeprof.model.vision_tensors import vision_tensors


def read_model(
    config: str | Path | Mapping[str, Any], *, name: str | None, count_tensors: bool
) -> MoEModel:
    """See `MoEModel.from_config`."""
    content, where, default_name = _content(config)
    model_type = _model_type(content, where)
    if content.get("is_encoder_decoder"):
        raise ModelError(
            f"{where}: is_encoder_decoder: '{model_type}' is no decoder alone, and its layers have "
            "no single index"
        )
    fields = text_fields(RoutingFields, content, where)
    routing = moe_layers(fields, where)
    experts = fields.experts if routing else 0
    if routing and fields.one_top_k is None:
        raise ModelError(
            f"{where}: num_experts_per_tok is missing for {experts} experts, or differs by layer"
        )
    counted = _count(content, model_type, where, len(routing)) if count_tensors else {}
    return MoEModel(
        name=name or default_name or model_type,
        model_type=model_type,
        hidden_size=fields.hidden_size,
        layers=fields.layers,
        moe_layers=routing,
        experts=experts,
        top_k=(fields.one_top_k or 0) if routing else 0,
        shared_experts=_shared_experts(fields) if routing else 0,
        expert_intermediate_size=(fields.expert_width or 0) if routing else 0,
        vocab_size=fields.vocab_size,
        max_positions=fields.max_positions or 0,
        tied_embeddings=bool(fields.tied_embeddings),
        **counted,
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


def _count(
    content: Mapping[str, Any], model_type: str, where: str, moe_layers: int
) -> dict[str, Any]:
    """What a model has beyond its routing: attention and the inventory of tensors."""
    fields = text_fields(ConfigFields, content, where)
    architecture = _architecture(content, model_type, where)
    indexed = len(indexed_layers(fields, where, every=architecture.token_indexer))
    layout = Layout(
        fields=fields,
        architecture=architecture,
        where=where,
        layers=fields.layers,
        attention=_attention(fields, architecture, where),
        linear=_linear(fields, architecture, where),
        moe_layers=moe_layers,
        indexed_layers=indexed,
        expert_width=_required_expert_width(fields, where) if moe_layers else 0,
        shared_experts=_shared_experts(fields),
    )
    tensors = list_tensors(layout)
    if architecture.vision:
        tower = vision_tensors(architecture.vision, content, fields.hidden_size, where)
        tensors = (*tensors, *tower)
    return {
        "attention": layout.attention,
        "linear": layout.linear,
        "indexer": _indexer(fields, indexed),
        "tensors": tensors,
        "prediction_tensors": list_prediction_tensors(layout),
    }


def _architecture(content: Mapping[str, Any], model_type: str, where: str) -> Architecture:
    """The row of the model type; a key of a layout that the row does not count is refused."""
    architecture = architecture_of(model_type, where)
    known = {"kv_lora_rank": architecture.latent, "linear_num_value_heads": architecture.linear}
    text = text_part(content)
    for key, meaning in UNCOUNTED_KEYS.items():
        if text.get(key) not in (None, 0) and not known.get(key):
            raise ModelError(f"{where}: {key}: {meaning} cannot be counted exactly yet")
    if content.get("vision_config") and not architecture.vision:
        raise ModelError(f"{where}: vision_config: this vision tower cannot be counted exactly yet")
    return architecture


def _attention(fields: ConfigFields, architecture: Architecture, where: str) -> Attention:
    if fields.heads % fields.kv_heads:
        raise ModelError(
            f"{where}: num_attention_heads {fields.heads} is no multiple of "
            f"num_key_value_heads {fields.kv_heads}"
        )
    sliding = len(sliding_layers(fields, where))
    window = fields.sliding_window if sliding else None
    if architecture.latent:
        rope, rank = required(fields, "rope_dim", where), required(fields, "latent_rank", where)
        head_dim = required(fields, "nope_dim", where) + rope
        return Attention(fields.heads, fields.kv_heads, head_dim, rank + rope, sliding, window)
    head_dim = _head_dim(fields, where)
    return Attention(fields.heads, fields.kv_heads, head_dim, None, sliding, window)


def _head_dim(fields: ConfigFields, where: str) -> int:
    if not fields.head_dim and fields.hidden_size % fields.heads:
        raise ModelError(
            f"{where}: head_dim is missing, and hidden_size {fields.hidden_size} is no multiple of "
            f"num_attention_heads {fields.heads}"
        )
    return fields.head_dim or fields.hidden_size // fields.heads


def _linear(fields: ConfigFields, architecture: Architecture, where: str) -> LinearAttention | None:
    layers = linear_layers(fields, where) if architecture.linear else ()
    if not layers:
        return None
    sizes = {
        name: required(fields, f"linear_{name}", where)
        for name in ("key_heads", "value_heads", "key_dim", "value_dim", "kernel")
    }
    return LinearAttention(layers=len(layers), **sizes)


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


def _required_expert_width(fields: ConfigFields, where: str) -> int:
    width = fields.expert_width
    if width is None:
        raise ModelError(f"{where}: moe_intermediate_size or intermediate_size is missing")
    return width


def _shared_experts(fields: RoutingFields) -> int:
    """How many; one where only its width is stated."""
    if fields.shared_experts is not None:
        return fields.shared_experts
    return 1 if fields.shared_width else 0
