"""Where a config.json keeps each fact: one literal table of names, and how they are looked up.

A dotted name goes into a nested object. Values are taken as they stand; `config_fields` checks
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moeprof.errors import ModelError

TEXT_ALIASES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "d_model"),
    "layers": ("num_hidden_layers", "num_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocab_size": ("vocab_size",),
    "max_positions": ("max_position_embeddings", "max_seq_len"),
    "tied_embeddings": ("tie_word_embeddings",),
    "experts": (
        "num_local_experts",
        "num_experts",
        "n_routed_experts",
        "moe_num_experts",
        "ffn_config.moe_num_experts",
    ),
    "top_k": (
        "num_experts_per_tok",
        "num_experts_per_token",
        "moe_topk",
        "moe_top_k",
        "moe_k",
        "top_k_experts",
        "ffn_config.moe_top_k",
    ),
    "moe_width": (
        "moe_intermediate_size",
        "expert_ffn_hidden_size",
        "ffn_config.ffn_hidden_size",
    ),
    "width": ("intermediate_size", "ffn_hidden_size"),
    "dense_width": ("dense_intermediate_size", "intermediate_size_mlp"),
    "shared_experts": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
    "shared_width": (
        "shared_intermediate_size",
        "shared_expert_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "share_expert_dim",
    ),
    "qkv_bias": ("attention_bias", "qkv_bias"),
    "mlp_bias": ("mlp_bias",),
    "use_qk_norm": ("use_qk_norm",),
    "qk_norm_type": ("qk_norm_type",),
    "use_routing_bias": ("use_routing_bias",),
    "routes": ("is_moe", "enable_moe_block"),
    "mlp_layer_types": ("mlp_layer_types",),
    "layer_blocks": ("layers_block_type",),
    "layer_letters": ("hybrid_override_pattern",),
    "moe_layer_freq": ("moe_layer_freq",),
    "listed_moe_layers": ("moe_layers",),
    "enumerated_moe_layers": ("moe_layers_enum",),
    "first_dense": ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"),
    "last_moe": ("moe_layer_end_index",),
    "sparse_step": ("decoder_sparse_step", "moe_layer_interval", "interleave_moe_layer_step"),
    "expert_period": ("expert_layer_period",),
    "expert_offset": ("expert_layer_offset",),
    "dense_layers": ("mlp_only_layers",),
    "attention_layer_types": ("layer_types",),
    "sparse_attention": ("sparse_attention_config.use_sparse_attention",),
    "sparse_attention_freq": ("sparse_attention_config.sparse_attention_freq",),
    "sliding_window": ("sliding_window",),
    "attention_interval": ("full_attention_interval",),
    "query_rank": ("q_lora_rank",),
    "latent_rank": ("kv_lora_rank",),
    "nope_dim": ("qk_nope_head_dim",),
    "rope_dim": ("qk_rope_head_dim",),
    "value_dim": ("v_head_dim",),
    "linear_key_heads": ("linear_num_key_heads",),
    "linear_value_heads": ("linear_num_value_heads",),
    "linear_key_dim": ("linear_key_head_dim",),
    "linear_value_dim": ("linear_value_head_dim",),
    "linear_kernel": ("linear_conv_kernel_dim",),
    "prediction_layers": ("num_nextn_predict_layers", "mtp_num_hidden_layers"),
    "indexer_types": ("indexer_types",),
    "index_heads": ("index_n_heads", "sparse_attention_config.sparse_num_index_heads"),
    "index_head_dim": ("index_head_dim", "sparse_attention_config.sparse_index_dim"),
    "index_block_size": ("index_block_size", "sparse_attention_config.sparse_block_size"),
    "index_top_blocks": ("index_topk_blocks", "sparse_attention_config.sparse_topk_blocks"),
}

VISION_ALIASES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("vision_config.hidden_size", "vision_config.vt_hidden_size"),
    "width": ("vision_config.intermediate_size", "vision_config.vt_intermediate_size"),
    "layers": (
        "vision_config.num_hidden_layers",
        "vision_config.depth",
        "vision_config.vt_num_hidden_layers",
    ),
    "patch_size": ("vision_config.patch_size",),
    "channels": ("vision_config.num_channels", "vision_config.in_channels"),
    "temporal_patch_size": (
        "vision_config.temporal_patch_size",
        "vision_config.img_token_compression_config.temporal_patch_size",
    ),
    "spatial_merge_size": (
        "vision_config.spatial_merge_size",
        "vision_config.img_token_compression_config.spatial_merge_size",
    ),
    "merge_kernel": ("vision_config.merge_kernel_size",),
    "projector_input": ("projection_hidden_size", "vision_config.mm_hidden_size"),
    "projector_width": ("projector_hidden_size",),
    "positions": ("vision_config.num_position_embeddings",),
    "position_rows": ("vision_config.pos_emb_height", "vision_config.init_pos_emb_height"),
    "position_columns": ("vision_config.pos_emb_width", "vision_config.init_pos_emb_width"),
    "output_size": ("vision_config.out_hidden_size",),
    "deepstack_layers": ("vision_config.deepstack_visual_indexes",),
}

# Keys of layouts that the inventory cannot count, or only where the architecture says that it has
# them; where one is set, counting is refused.
UNCOUNTED_KEYS: dict[str, str] = {
    "kv_lora_rank": "multi-head latent attention",
    "linear_num_value_heads": "linear attention layers",
    "mamba_d_state": "state space layers",
    "attn_layer_period": "layers without attention",
    "num_kv_shared_layers": "layers that share keys and values",
    "block_configs": "layers of different widths",
    "use_bias": "biases on every projection",
}

# Where a model of several parts keeps the language model that answers, outermost first.
_NESTED = ("thinker_config", "text_config", "language_config", "llm_config")


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object that describes the language model: `text_config` where there is one."""
    for key in _NESTED:
        nested = config.get(key)
        if isinstance(nested, Mapping):
            return text_part(nested)
    return config


def find_values(
    config: Mapping[str, Any], aliases: Mapping[str, tuple[str, ...]], where: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values that `config` states, by our names, and the key each of them stood under.

    An absent key and null are the same. Raises ModelError where two keys for one fact disagree.
    """
    values: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for name, alternatives in aliases.items():
        for key, value in _stated(config, alternatives):
            if name in values and values[name] != value:
                raise ModelError(
                    f"{where}: {keys[name]} is {values[name]!r} but {key} is {value!r}"
                )
            values.setdefault(name, value)
            keys.setdefault(name, key)
    return values, keys


def _stated(config: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for key in keys:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            yield key, value
