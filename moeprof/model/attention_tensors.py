"""The tensors of attention: grouped-query, latent, gated delta rule, and the indexers beside them.

Each function counts its kind over the layers that have it, so a hybrid model is their sum.
"""

from __future__ import annotations

from moeprof.errors import ModelError
from moeprof.model.config_fields import required
from moeprof.model.layout import Layout
from moeprof.model.tensors import TensorGroup, vectors

_QK_NORM_TYPES = {"per_head": "per_head", "per_layer": "full"}


def attention_tensors(layout: Layout) -> list[TensorGroup]:
    """Every attention layer of the model, and its indexers."""
    heads = _latent(layout) if layout.architecture.latent else _grouped(layout)
    indexer = _token_indexer if layout.architecture.token_indexer else _block_indexer
    return [*heads, *_gated_delta(layout), *indexer(layout)]


def _grouped(layout: Layout) -> list[TensorGroup]:
    fields, layers = layout.fields, layout.attention_layers
    query = fields.heads * layout.attention.head_dim
    key = layout.attention.kv_heads * layout.attention.head_dim
    gated_query = 2 * query if layout.architecture.query_gate else query
    groups = [
        TensorGroup("attention", "q_proj", (gated_query, fields.hidden_size), layers),
        TensorGroup("attention", "k_proj", (key, fields.hidden_size), layers),
        TensorGroup("attention", "v_proj", (key, fields.hidden_size), layers),
        TensorGroup("attention", "o_proj", (fields.hidden_size, query), layers),
        *_qk_norms(layout, query, key),
    ]
    if _has_bias(layout):
        groups += vectors("attention", layers, q_bias=gated_query, k_bias=key, v_bias=key)
        if layout.architecture.output_bias:
            groups += vectors("attention", layers, o_bias=fields.hidden_size)
    if layout.architecture.attention_sinks:
        groups += vectors("attention", layers, sinks=fields.heads)
    return groups


def _has_bias(layout: Layout) -> bool:
    stated = layout.fields.qkv_bias
    return layout.architecture.qkv_bias if stated is None else stated


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
        query = key = layout.attention.head_dim
    return vectors("attention", layout.attention_layers, q_norm=query, k_norm=key)


def _latent(layout: Layout) -> list[TensorGroup]:
    """Queries and keys-with-values each through a short vector (DeepSeek-V2, arXiv 2405.04434)."""
    fields, layers, where = layout.fields, layout.attention_layers, layout.where
    hidden, heads = fields.hidden_size, fields.heads
    nope, rope = required(fields, "nope_dim", where), required(fields, "rope_dim", where)
    value, rank = required(fields, "value_dim", where), required(fields, "latent_rank", where)
    matrices = {
        "kv_a_proj": (rank + rope, hidden),
        "kv_b_proj": (heads * (nope + value), rank),
        "o_proj": (hidden, heads * value),
    }
    lengths = {"kv_a_norm": rank}
    if fields.query_rank is None:
        matrices["q_proj"] = (heads * (nope + rope), hidden)
    else:
        matrices["q_a_proj"] = (fields.query_rank, hidden)
        matrices["q_b_proj"] = (heads * (nope + rope), fields.query_rank)
        lengths["q_a_norm"] = fields.query_rank
    if _has_bias(layout):
        biased = {"q_a_proj", "kv_a_proj", "o_proj"} & matrices.keys()
        lengths |= {f"{name}_bias": matrices[name][0] for name in sorted(biased)}
    groups = [TensorGroup("attention", name, shape, layers) for name, shape in matrices.items()]
    return groups + vectors("attention", layers, **lengths)


def _gated_delta(layout: Layout) -> list[TensorGroup]:
    """Layers of the gated delta rule (arXiv 2412.06464), with gates a, b and z."""
    linear, hidden = layout.linear, layout.fields.hidden_size
    if linear is None:
        return []
    key, value = linear.key_heads * linear.key_dim, linear.value_heads * linear.value_dim
    matrices = {
        "linear_qkv_proj": (2 * key + value, hidden),
        "linear_z_proj": (value, hidden),
        "linear_b_proj": (linear.value_heads, hidden),
        "linear_a_proj": (linear.value_heads, hidden),
        "linear_conv": (2 * key + value, 1, linear.kernel),
        "linear_out_proj": (hidden, value),
    }
    layers = linear.layers
    groups = [TensorGroup("attention", name, shape, layers) for name, shape in matrices.items()]
    heads = linear.value_heads
    return groups + vectors(
        "attention", layers, linear_dt=heads, linear_decay=heads, linear_norm=linear.value_dim
    )


def _block_indexer(layout: Layout) -> list[TensorGroup]:
    """MiniMax-M3: index queries from the hidden state, one index key, a norm on each."""
    fields, layers = layout.fields, layout.indexed_layers
    if not layers:
        return []
    heads, dim = _index_heads(layout)
    return [
        TensorGroup("indexer", "index_q_proj", (heads * dim, fields.hidden_size), layers),
        TensorGroup("indexer", "index_k_proj", (dim, fields.hidden_size), layers),
        *vectors("indexer", layers, index_q_norm=dim, index_k_norm=dim),
    ]


def _token_indexer(layout: Layout) -> list[TensorGroup]:
    """DeepSeek-V3.2: index queries from the latent query, a weight for each index head."""
    fields, layers = layout.fields, layout.indexed_layers
    if not layers:
        return []
    heads, dim = _index_heads(layout)
    rank = required(fields, "query_rank", layout.where)
    return [
        TensorGroup("indexer", "index_q_proj", (heads * dim, rank), layers),
        TensorGroup("indexer", "index_k_proj", (dim, fields.hidden_size), layers),
        TensorGroup("indexer", "index_weights_proj", (heads, fields.hidden_size), layers),
        *vectors("indexer", layers, index_k_norm=dim, index_k_norm_bias=dim),
    ]


def _index_heads(layout: Layout) -> tuple[int, int]:
    fields = layout.fields
    if fields.index_heads is None or fields.index_head_dim is None:
        raise ModelError(
            f"{layout.where}: sparse_num_index_heads (index_n_heads) or sparse_index_dim "
            f"(index_head_dim) is missing, and {layout.indexed_layers} layers have an indexer"
        )
    return fields.index_heads, fields.index_head_dim
