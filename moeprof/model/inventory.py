"""From checked configuration to the list of tensors, and so to exact parameter counts.

One part of the model a function; what a family does differently comes from its row in
`architectures` or from a key of its config.json. Verified class by class against the modules that
transformers 5.23.0 builds (tests/model/test_against_transformers.py).
"""

from __future__ import annotations

from dataclasses import replace

from moeprof.errors import ModelError
from moeprof.model.attention_tensors import attention_tensors
from moeprof.model.layout import Layout
from moeprof.model.tensors import TensorGroup, vectors


def list_tensors(layout: Layout) -> tuple[TensorGroup, ...]:
    """Every tensor of the language model. Raises ModelError naming the key that a count lacks."""
    hidden = layout.fields.hidden_size
    groups = [
        *_layers(layout),
        *_tables(layout),
        *vectors("norms", 1, final_norm=hidden),
    ]
    return tuple(group for group in groups if group.count)


def list_prediction_tensors(layout: Layout) -> tuple[TensorGroup, ...]:
    """The modules for multi-token prediction that the checkpoint stores beside the model.

    Each is one more decoder layer of the last layer's kind, a projection of (hidden state, next
    embedding) and norms on both and behind (DeepSeek-V3, arXiv 2412.19437, 2.2); some checkpoints
    repeat the embedding and the head there.
    """
    count = layout.fields.prediction_layers
    if not layout.architecture.prediction or not count:
        return ()
    hidden = layout.fields.hidden_size
    module = replace(
        layout,
        layers=count,
        linear=None,
        moe_layers=count if layout.moe_layers else 0,
        indexed_layers=count if layout.indexed_layers else 0,
    )
    groups = [
        *_layers(module),
        TensorGroup("dense", "prediction_proj", (hidden, 2 * hidden), count),
        *vectors("norms", count, embedding_norm=hidden, hidden_norm=hidden, final_norm=hidden),
    ]
    if layout.architecture.prediction == "copies":
        groups += [replace(table, count=count) for table in _tables(layout)]
    return tuple(group for group in groups if group.count)


def _layers(layout: Layout) -> list[TensorGroup]:
    return [
        *_experts(layout),
        *_shared(layout),
        *attention_tensors(layout),
        *_dense(layout),
        *vectors("norms", 2 * layout.layers, layer_norm=layout.fields.hidden_size),
    ]


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


def _dense(layout: Layout) -> list[TensorGroup]:
    fields, layers = layout.fields, layout.layers - layout.moe_layers
    if not layers:
        return []
    width = fields.dense_width or fields.width
    if width is None:
        raise ModelError(f"{layout.where}: dense_intermediate_size or intermediate_size is missing")
    groups = _feed_forward("dense", fields.hidden_size, width, layers)
    if fields.mlp_bias:
        hidden = fields.hidden_size
        groups += vectors("dense", layers, gate_bias=width, up_bias=width, down_bias=hidden)
    return groups


def _tables(layout: Layout) -> list[TensorGroup]:
    fields = layout.fields
    if fields.tied_embeddings is None:
        raise ModelError(f"{layout.where}: tie_word_embeddings is missing")
    table = (fields.vocab_size, fields.hidden_size)
    return [
        TensorGroup("embedding", "embed_tokens", table, 1),
        TensorGroup("head", "lm_head", table, 0 if fields.tied_embeddings else 1),
    ]
