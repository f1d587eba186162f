"""Tiny random models of any family of transformers: its own classes, its configuration shrunk.

Sizes are shrunk by the names of their keys; what a family wants different stands in `OVERRIDES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

WIDTH, VOCABULARY = 32, 64
EXPERTS, TOP_K = 8, 2

SIZES = (
    (
        WIDTH,
        "hidden_size d_model intermediate_size ffn_hidden_size dense_intermediate_size "
        "intermediate_size_mlp moe_hidden_size text_hidden_size thinker_hidden_size hc_lowrank "
        "out_hidden_size projector_hidden_size projection_hidden_dim merged_hidden_size "
        "projection_intermediate_size vision_output_dim projector_input_dim projector_output_dim "
        "encoder_ffn_dim decoder_ffn_dim output_dim adapter_in_dim adapter_out_dim "
        "adapter_input_size d_ff mlp_dim output_channels output_proj_dims decoder_dim",
    ),
    (
        16,
        "expert_ffn_hidden_size moe_intermediate_size shared_intermediate_size share_expert_dim "
        "shared_expert_intermediate_size shared_experts_intermediate_size router_hidden_size "
        "moe_shared_expert_intermediate_size kv_lora_rank q_lora_rank qk_head_dim index_head_dim "
        "num_position_embeddings num_mel_bins downsample_hidden_size",
    ),
    (
        8,
        "head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim kv_channels swa_head_dim d_kv "
        "o_lora_rank linear_key_head_dim linear_value_head_dim linear_head_dim mamba_n_heads "
        "mamba_d_head mamba_d_state mamba_num_heads mamba_head_dim ssm_state_size "
        "hidden_size_per_layer_input",
    ),
    (
        4,
        "num_hidden_layers num_layers num_decoder_layers n_layers num_attention_heads n_heads "
        "num_heads num_key_value_heads swa_num_attention_heads swa_num_key_value_heads "
        "num_sliding_attention_heads index_topk index_kpool linear_num_value_heads "
        "linear_num_heads mamba_dt_rank encoder_attention_heads decoder_attention_heads",
    ),
    (
        2,
        "index_n_heads o_groups n_group num_expert_group linear_num_key_heads n_groups "
        "layer_group_size attn_layer_period depth encoder_layers decoder_layers",
    ),
    (1, "topk_group first_k_dense_replace num_dense_layers attn_layer_offset accept_hidden_layer"),
    (EXPERTS, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (TOP_K, "num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k top_k_experts"),
    (VOCABULARY, "vocab_size vocab_size_per_layer_input unpadded_vocab_size"),
    (128, "max_position_embeddings"),
)
SHRUNK: dict[str, Any] = {name: size for size, names in SIZES for name in names.split()}
SHRUNK |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

LINEAR_AND_FULL = ["linear_attention", "full_attention"] * 2
AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
# By the name of a configuration class: what its other settings ask for.
OVERRIDES: dict[str, dict[str, Any]] = {
    "DbrxAttentionConfig": {"rope_theta": 10000.0, "kv_n_heads": 4, "clip_qkv": 8.0},
    "DeepseekOcr2TextConfig": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "DeepseekV4Config": {"mlp_layer_types": ["hash_moe", "hash_moe", "moe", "moe"]},
    "DogeConfig": {"is_moe": True, "num_experts": 16},
    "Dots1Config": {"n_shared_experts": 1},
    "Dots3NoteTextConfig": {
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_qk_nope_head_dim": 8,
        "swa_qk_rope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "Dots3NoteVisionConfig": {"pyramid_num_routed": [-1, EXPERTS, EXPERTS, EXPERTS]},
    "Ernie4_5_VLMoeTextConfig": {"moe_intermediate_size": [16, 16], "rope_parameters": AXES},
    "Gemma4TextConfig": {"enable_moe_block": True},
    "Glm4vMoeTextConfig": {"rope_parameters": {**AXES, "partial_rotary_factor": 1.0}},
    "Glm5NextTextConfig": {"qk_rope_head_dim": 0, "qk_head_dim": 8},
    "GraniteMoeHybridConfig": {"layer_types": LINEAR_AND_FULL},
    "KimiLinearConfig": {"layer_types": LINEAR_AND_FULL},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"] * 2},
    "LongcatFlashConfig": {"zero_expert_num": 4},
    "MiMoV2FlashConfig": {"head_dim": 24, "v_head_dim": 16, "num_key_value_heads": 2},
    "MuseSparkAudioConfig": {"hidden_sizes": [8, 8, 8, 8], "out_hidden_size": 32},
    "Qwen3OmniMoeTalkerConfig": {"spatial_merge_size": 2},
    "Qwen3OmniMoeThinkerConfig": {"vision_start_token_id": 60},
    "Qwen3OmniMoeTalkerTextConfig": {"shared_expert_intermediate_size": 16},
    "Qwen4ExpTextConfig": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "Step3p7TextConfig": {"sliding_window": 8},
    "ZayaConfig": {"num_experts_per_tok": 1},
}


def modeling(family: str) -> Any:
    """The module that holds the model classes of `family`."""
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


def model_classes(family: str) -> Iterator[Any]:
    """The models of `family` that are for users, those that generate text first."""
    module = modeling(family)
    public = [getattr(module, name) for name in module.__all__]
    own = [kind for kind in public if isinstance(getattr(kind, "config_class", None), type)]
    for ending in ("ForCausalLM", "Generation", "Diffusion", "TokenClassification", "Model"):
        for kind in own:
            if kind.__name__.endswith(ending) and "PreTrained" not in kind.__name__:
                yield kind


def tiny_model(kind: Any) -> Any:
    """A model of class `kind`, in evaluation mode, with random weights."""
    import torch

    torch.manual_seed(0)
    return kind(kind.config_class(**shrunk(kind.config_class))).eval()


def shrunk(config_class: Any) -> dict[str, Any]:
    """Settings of `config_class` and of the configurations inside it that make a small model."""
    default = config_class()
    known = set(config_class.__dataclass_fields__) | set(config_class.attribute_map)
    settings: dict[str, Any] = {key: value for key, value in SHRUNK.items() if key in known}
    for name in config_class.sub_configs:
        nested = getattr(default, name)
        if nested is not None:
            settings[name] = {"model_type": nested.model_type, **shrunk(type(nested))}
    return settings | OVERRIDES.get(config_class.__name__, {})
