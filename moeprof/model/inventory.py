"""From checked configuration to the list of tensors, and so to exact parameter counts.

One part of the model a function; what a family does differently comes from its row in
`architectures` or from a key of its config.json. Verified class by class against the modules that
transformers 5.23.0 builds (tests/model/test_against_transformers.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moeprof.errors import ModelError
from moeprof.model.architectures import Architecture
from moeprof.model.tensors import TensorGroup

if TYPE_CHECKING:
    from moeprof.model.config_fields import ConfigFields, VisionFields

_QK_NORM_TYPES = {"per_head": "per_head", "per_layer": "full"}


@dataclass(frozen=True)
class Layout:
    """What the counting functions share: sizes after every default has been settled."""

    fields: ConfigFields
    architecture: Architecture
    where: str
    head_dim: int
    kv_heads: int
    moe_layers: int
    indexed_layers: int
    expert_width: int
    shared_experts: int


def list_tensors(layout: Layout, vision: VisionFields | None) -> tuple[TensorGroup, ...]:
    """Every tensor of the model. Raises ModelError naming the key that an exact count lacks."""
    groups = [
        *_experts(layout),
        *_shared(layout),
        *_attention(layout),
        *_dense(layout),
        *_indexer(layout),
        *_outer(layout),
    ]
    if vision is not None:
        groups += _vision(vision, layout.fields.hidden_size)
    return tuple(group for group in groups if group.count)


def _experts(layout: Layout) -> list[TensorGroup]:
    hidden, width, experts = layout.fields.hidden_size, layout.expert_width, layout.fields.experts
    count = layout.moe_layers * experts
    if not count:
        return []
    groups = [
        TensorGroup("router", "gate", (experts, hidden), layout.moe_layers),
        TensorGroup("routed", "gate_proj", (width, hidden), count),
        TensorGroup("routed", "up_proj", (width, hidden), count),
        TensorGroup("routed", "down_proj", (hidden, width), count),
    ]
    if layout.architecture.expert_bias:
        groups.append(TensorGroup("routed", "gate_up_bias", (2 * width,), count))
        groups.append(TensorGroup("routed", "down_bias", (hidden,), count))
    if layout.architecture.router_bias and layout.fields.use_routing_bias is not False:
        groups.append(TensorGroup("router", "gate_bias", (experts,), layout.moe_layers))
    return groups


def _shared(layout: Layout) -> list[TensorGroup]:
    if not layout.shared_experts or not layout.moe_layers:
        return []
    hidden, layers = layout.fields.hidden_size, layout.moe_layers
    # Several shared experts are stored as one wider expert.
    width = (layout.fields.shared_width or layout.expert_width) * layout.shared_experts
    groups = _feed_forward("shared", hidden, width, layers)
    if layout.architecture.shared_gate:
        groups.append(TensorGroup("shared", "expert_gate", (1, hidden), layers))
    return groups


def _feed_forward(tensor_class: str, hidden: int, width: int, count: int) -> list[TensorGroup]:
    return [
        TensorGroup(tensor_class, "gate_proj", (width, hidden), count),
        TensorGroup(tensor_class, "up_proj", (width, hidden), count),
        TensorGroup(tensor_class, "down_proj", (hidden, width), count),
    ]


def _attention(layout: Layout) -> list[TensorGroup]:
    fields, layers = layout.fields, layout.fields.layers
    query, key = fields.heads * layout.head_dim, layout.kv_heads * layout.head_dim
    groups = [
        TensorGroup("attention", "q_proj", (query, fields.hidden_size), layers),
        TensorGroup("attention", "k_proj", (key, fields.hidden_size), layers),
        TensorGroup("attention", "v_proj", (key, fields.hidden_size), layers),
        TensorGroup("attention", "o_proj", (fields.hidden_size, query), layers),
        *_qk_norms(layout, query, key),
    ]
    default = layout.architecture.qkv_bias
    if default if fields.qkv_bias is None else fields.qkv_bias:
        groups += _vectors("attention", layers, q_bias=query, k_bias=key, v_bias=key)
        if layout.architecture.output_bias:
            groups += _vectors("attention", layers, o_bias=fields.hidden_size)
    if layout.architecture.attention_sinks:
        groups += _vectors("attention", layers, sinks=fields.heads)
    return groups


def _qk_norms(layout: Layout, query: int, key: int) -> list[TensorGroup]:
    fields, kind = layout.fields, layout.architecture.qk_norm
    if fields.use_qk_norm is False:
        kind = "none"
    elif fields.qk_norm_type is not None:
        if fields.qk_norm_type not in _QK_NORM_TYPES:
            raise ModelError(
                f"{layout.where}: qk_norm_type: '{fields.qk_norm_type}' is none of "
                f"{sorted(_QK_NORM_TYPES)}"
            )
        kind = _QK_NORM_TYPES[fields.qk_norm_type]
    elif fields.use_qk_norm and kind == "none":
        kind = "per_head"
    if kind == "none":
        return []
    if kind == "per_head":
        query = key = layout.head_dim
    return _vectors("attention", fields.layers, q_norm=query, k_norm=key)


def _vectors(tensor_class: str, count: int, **lengths: int) -> list[TensorGroup]:
    return [TensorGroup(tensor_class, name, (n,), count) for name, n in lengths.items()]


def _dense(layout: Layout) -> list[TensorGroup]:
    fields, layers = layout.fields, layout.fields.layers - layout.moe_layers
    if not layers:
        return []
    width = fields.dense_width or fields.width
    if width is None:
        raise ModelError(f"{layout.where}: dense_intermediate_size or intermediate_size is missing")
    groups = _feed_forward("dense", fields.hidden_size, width, layers)
    if fields.mlp_bias:
        hidden = fields.hidden_size
        groups += _vectors("dense", layers, gate_bias=width, up_bias=width, down_bias=hidden)
    return groups


def _indexer(layout: Layout) -> list[TensorGroup]:
    fields, layers = layout.fields, layout.indexed_layers
    if not layers:
        return []
    if fields.index_heads is None or fields.index_head_dim is None:
        raise ModelError(
            f"{layout.where}: sparse_num_index_heads (index_n_heads) or sparse_index_dim "
            f"(index_head_dim) is missing, and {layers} layers have an indexer"
        )
    hidden, dim = fields.hidden_size, fields.index_head_dim
    return [
        TensorGroup("indexer", "index_q_proj", (fields.index_heads * dim, hidden), layers),
        TensorGroup("indexer", "index_k_proj", (dim, hidden), layers),
        *_vectors("indexer", layers, index_q_norm=dim, index_k_norm=dim),
    ]


def _outer(layout: Layout) -> Iterable[TensorGroup]:
    fields = layout.fields
    if fields.tied_embeddings is None:
        raise ModelError(f"{layout.where}: tie_word_embeddings is missing")
    table = (fields.vocab_size, fields.hidden_size)
    return [
        TensorGroup("embedding", "embed_tokens", table, 1),
        TensorGroup("head", "lm_head", table, 0 if fields.tied_embeddings else 1),
        TensorGroup("norms", "layer_norm", (fields.hidden_size,), 2 * fields.layers),
        TensorGroup("norms", "final_norm", (fields.hidden_size,), 1),
    ]


def _vision(vision: VisionFields, text_hidden: int) -> list[TensorGroup]:
    hidden, width, projector = vision.hidden_size, vision.width, vision.projector_width
    patch = (vision.channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    merged = text_hidden * vision.spatial_merge_size**2
    matrices = {
        "attention_proj": ((hidden, hidden), 4 * vision.layers),
        "fc1": ((width, hidden), vision.layers),
        "fc2": ((hidden, width), vision.layers),
        "projector_1": ((projector, hidden), 1),
        "projector_2": ((text_hidden, projector), 1),
        "merge_1": ((projector, merged), 1),
        "merge_2": ((text_hidden, projector), 1),
    }
    norms = 2 * (2 * vision.layers + 1)  # weight and bias: two norms a layer, one before them
    groups = [TensorGroup("vision", "patch_embedding", (hidden, *patch), 1)]
    groups.append(TensorGroup("vision", "layer_norm", (hidden,), norms))
    for name, (shape, count) in matrices.items():
        groups.append(TensorGroup("vision", name, shape, count))
        groups.append(TensorGroup("vision", f"{name}_bias", shape[:1], count))
    return groups
