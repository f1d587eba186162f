"""Our counts against the modules that transformers builds, class by class, on the meta device."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from moeprof.model import TENSOR_CLASSES, MoEModel, preset_names
from moeprof.model.architectures import ARCHITECTURES
from moeprof.model.presets import read_preset

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

# Where a name belongs: the first part that it contains decides.
CLASS_BY_PART = {
    "e_score_correction_bias": "router",
    "vision_tower.": "vision",
    ".visual.": "vision",
    "mm_projector.": "vision",
    "multi_modal_projector.": "vision",
    "embed_tokens.": "embedding",
    "lm_head.": "head",
    ".indexer.": "indexer",
    ".self_attn.": "attention",
    ".linear_attn.": "attention",
    ".shared_expert": "shared",
    ".experts.": "routed",
    ".gate.": "router",
    ".router.": "router",
    "norm.": "norms",
    ".mlp.": "dense",
}

# The smallest configuration with every part of an architecture; keys that a family does not have
# are left to its own defaults.
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 80,
    "dense_intermediate_size": 112,
    "moe_intermediate_size": 48,
    "shared_intermediate_size": 40,
    "shared_expert_intermediate_size": 56,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "vocab_size": 96,
    "first_k_dense_replace": 1,
    "mlp_only_layers": [1],
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    "layer_types": None,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "use_qk_norm": True,
    "q_lora_rank": 44,
    "kv_lora_rank": 36,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 12,
    "v_head_dim": 28,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 10,
    "linear_value_head_dim": 14,
    "linear_conv_kernel_dim": 3,
    "tie_word_embeddings": False,
}
SMALL_VISION = {
    "hidden_size": 52,
    "intermediate_size": 68,
    "depth": 3,
    "num_hidden_layers": 3,
    "num_heads": 4,
    "num_attention_heads": 4,
    "patch_size": 6,
    "spatial_merge_size": 3,
    "temporal_patch_size": 5,
    "merge_kernel_size": [3, 2],
    "num_position_embeddings": 25,
    "pos_emb_height": 7,
    "pos_emb_width": 11,
    "out_hidden_size": 64,
    "deepstack_visual_indexes": [0, 2],
}
# Names that checkpoints use for an architecture of transformers, and parts of larger models.
RENAMED = {"kimi_k2": "deepseek_v3"}
PARTS = {"minimax_m3", "qwen3_vl_text", "qwen3_vl_moe_text"}
WITH_VISION = sorted(name for name, row in ARCHITECTURES.items() if row.vision)
TEXT_TYPES = sorted(set(ARCHITECTURES) - set(WITH_VISION) - PARTS)


def counted(model: Any) -> dict[str, int]:
    """Parameters by class of a module; a router's selection bias is a buffer there."""
    counts: Counter[str] = Counter(dict.fromkeys(TENSOR_CLASSES, 0))
    named = [*model.named_parameters()]
    named += [b for b in model.named_buffers() if b[0].endswith("e_score_correction_bias")]
    for name, tensor in named:
        part = next(part for part in CLASS_BY_PART if part in name)
        counts[CLASS_BY_PART[part]] += tensor.numel()
    return dict(counts)


def ours(config: Any) -> dict[str, int]:
    parameters = MoEModel.from_config(config).parameters
    return {name: parameters[name] for name in TENSOR_CLASSES}


def small_config(model_type: str) -> Any:
    return transformers.AutoConfig.for_model(
        RENAMED.get(model_type, model_type), **small_text(RENAMED.get(model_type, model_type))
    )


def small_text(model_type: str) -> dict[str, Any]:
    known = transformers.AutoConfig.for_model(model_type).to_dict()
    changes = {key: value for key, value in SMALL.items() if key in known or key == "head_dim"}
    if model_type == "minimax_m3_vl_text":
        changes["layer_types"] = ["full_attention"] + ["minimax_m3_sparse"] * 3
    if model_type == "glm_moe_dsa":
        changes["indexer_types"] = ["full", "full", "shared", "full"]
    if "head_dim" not in known:
        changes["head_dim"] = SMALL["hidden_size"] // SMALL["num_attention_heads"]  # type: ignore[operator]
    return changes


def on_meta(config: Any, auto: str = "AutoModelForCausalLM") -> Any:
    with torch.device("meta"):
        return getattr(transformers, auto).from_config(config)


@pytest.mark.parametrize("model_type", TEXT_TYPES)
def test_every_architecture_row_in_small(model_type: str, tmp_path: Path) -> None:
    config = small_config(model_type)
    built = counted(on_meta(config))
    assert ours(config.to_dict()) == built
    config.save_pretrained(tmp_path)
    assert ours(tmp_path) == built


@pytest.mark.parametrize("model_type", WITH_VISION)
def test_every_vision_tower_in_small(model_type: str) -> None:
    default = transformers.AutoConfig.for_model(model_type)
    vision = default.vision_config.to_dict()
    changes = {key: value for key, value in SMALL_VISION.items() if key in vision}
    text_type = default.text_config.model_type
    config = type(default)(
        text_config={"model_type": text_type, **small_text(text_type)},
        vision_config=changes,
        tie_word_embeddings=False,
    )
    built = counted(on_meta(config, "AutoModelForImageTextToText"))
    assert built["vision"]
    assert ours(config.to_dict()) == built


BIASED = ["qwen3_moe", "llama", "deepseek_v3", "hy_v3", "flex_olmo", "mellum", "solar_open"]


@pytest.mark.parametrize("model_type", BIASED)
def test_biases_and_tied_embeddings_in_small(model_type: str) -> None:
    config = small_config(model_type)
    config.attention_bias = True
    config.tie_word_embeddings = True
    if model_type == "llama":
        config.mlp_bias = True
    assert ours(config.to_dict()) == counted(on_meta(config))


def test_latent_attention_with_whole_queries_in_small() -> None:
    """DeepSeek-V2-Lite compresses keys and values alone."""
    config = small_config("deepseek_v2")
    config.q_lora_rank = None
    assert ours(config.to_dict()) == counted(on_meta(config))


def test_minimax_m3_in_full() -> None:
    published = read_preset("minimax-m3")
    config = transformers.MiniMaxM3VLConfig(
        text_config=published["text_config"],
        vision_config=published["vision_config"],
        projector_hidden_size=published["projector_hidden_size"],
    )
    assert ours(published) == counted(on_meta(config, "AutoModelForImageTextToText"))
    assert ours(config.to_dict()) == ours(published)


@pytest.mark.parametrize("name", sorted(set(preset_names()) - {"minimax-m3", "kimi-k2.5"}))
def test_every_preset_in_full(name: str) -> None:
    content = read_preset(name)
    keys = {key: value for key, value in content.items() if not key.startswith("_")}
    keys["model_type"] = RENAMED.get(keys["model_type"], keys["model_type"])
    vision = "vision_config" in keys
    auto = "AutoModelForImageTextToText" if vision else "AutoModelForCausalLM"
    assert ours(content) == counted(on_meta(transformers.AutoConfig.for_model(**keys), auto))


def test_kimi_k25_in_full() -> None:
    """Its checkpoint's file names the sizes of the tower otherwise than transformers does."""
    published = read_preset("kimi-k2.5")
    text = {**published["text_config"], "model_type": "deepseek_v3"}
    tower = {
        key.removeprefix("vt_").removeprefix("init_"): value
        for key, value in published["vision_config"].items()
        if key.startswith(("vt_", "init_", "patch", "merge_kernel"))
    }
    config = transformers.AutoConfig.for_model(
        "kimi_k25", text_config=text, vision_config=tower, tie_word_embeddings=False
    )
    assert ours(published) == counted(on_meta(config, "AutoModelForImageTextToText"))
