"""Where a config.json keeps each fact: one literal table of names, and how they are looked up.

A dotted name goes into a nested object. Values are taken as they stand; `config_fields` checks
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moeprof.errors import ModelError

TEXT_ALIASES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size",),
    "layers": ("num_hidden_layers",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocab_size": ("vocab_size",),
    "max_positions": ("max_position_embeddings",),
    "tied_embeddings": ("tie_word_embeddings",),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "top_k": ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"),
    "moe_width": ("moe_intermediate_size",),
    "width": ("intermediate_size",),
    "dense_width": ("dense_intermediate_size",),
    "shared_experts": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
    "shared_width": ("shared_intermediate_size", "shared_expert_intermediate_size"),
    "qkv_bias": ("attention_bias", "qkv_bias", "use_bias"),
    "mlp_bias": ("mlp_bias",),
    "use_qk_norm": ("use_qk_norm",),
    "qk_norm_type": ("qk_norm_type",),
    "use_routing_bias": ("use_routing_bias",),
    "mlp_layer_types": ("mlp_layer_types",),
    "moe_layer_freq": ("moe_layer_freq",),
    "first_dense": ("first_k_dense_replace",),
    "sparse_step": ("decoder_sparse_step",),
    "dense_layers": ("mlp_only_layers",),
    "attention_layer_types": ("layer_types",),
    "sparse_attention": ("sparse_attention_config.use_sparse_attention",),
    "sparse_attention_freq": ("sparse_attention_config.sparse_attention_freq",),
    "index_heads": ("index_n_heads", "sparse_attention_config.sparse_num_index_heads"),
    "index_head_dim": ("index_head_dim", "sparse_attention_config.sparse_index_dim"),
    "index_block_size": ("index_block_size", "sparse_attention_config.sparse_block_size"),
    "index_top_blocks": ("index_topk_blocks", "sparse_attention_config.sparse_topk_blocks"),
}

VISION_ALIASES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("vision_config.hidden_size",),
    "width": ("vision_config.intermediate_size",),
    "layers": ("vision_config.num_hidden_layers",),
    "patch_size": ("vision_config.patch_size",),
    "channels": ("vision_config.num_channels",),
    "temporal_patch_size": (
        "vision_config.temporal_patch_size",
        "vision_config.img_token_compression_config.temporal_patch_size",
    ),
    "spatial_merge_size": (
        "vision_config.spatial_merge_size",
        "vision_config.img_token_compression_config.spatial_merge_size",
    ),
    "projector_width": ("projector_hidden_size",),
}

# Keys of layouts that the inventory cannot count; where one is set, counting is refused.
UNCOUNTED_KEYS: dict[str, str] = {
    "kv_lora_rank": "multi-head latent attention",
    "linear_num_value_heads": "linear attention layers",
    "mamba_d_state": "state space layers",
    "attn_layer_period": "layers without attention",
    "num_kv_shared_layers": "layers that share keys and values",
    "block_configs": "layers of different widths",
}


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object that describes the language model: `text_config` where there is one."""
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


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
