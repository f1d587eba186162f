"""Our counts against the modules that transformers builds, class by class, on the meta device."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from moeprof.model import TENSOR_CLASSES, MoEModel
from moeprof.model.architectures import ARCHITECTURES
from moeprof.model.presets import read_preset
from tests.model.test_moe_model import MIXTRAL

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

# Where a name belongs: the first part that it contains decides.
CLASS_BY_PART = {
    "e_score_correction_bias": "router",
    "vision_tower.": "vision",
    "multi_modal_projector.": "vision",
    "embed_tokens.": "embedding",
    "lm_head.": "head",
    ".indexer.": "indexer",
    ".self_attn.": "attention",
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
}
TEXT_TYPES = sorted(set(ARCHITECTURES) - {"minimax_m3_vl", "minimax_m3"})


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
    known = transformers.AutoConfig.for_model(model_type).to_dict()
    changes = {key: value for key, value in SMALL.items() if key in known or key == "head_dim"}
    if model_type == "minimax_m3_vl_text":
        sparse = ["full_attention"] + ["minimax_m3_sparse"] * 3
        changes["layer_types"] = sparse
    if "head_dim" not in known:
        changes["head_dim"] = SMALL["hidden_size"] // SMALL["num_attention_heads"]  # type: ignore[operator]
    return transformers.AutoConfig.for_model(model_type, **changes)


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


@pytest.mark.parametrize("model_type", ["qwen3_moe", "llama"])
def test_biases_and_tied_embeddings_in_small(model_type: str) -> None:
    config = small_config(model_type)
    config.attention_bias = True
    config.tie_word_embeddings = True
    if model_type == "llama":
        config.mlp_bias = True
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


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "llama-3.1-70b", "mixtral-8x7b"])
def test_other_models_in_full(name: str) -> None:
    content = MIXTRAL if name == "mixtral-8x7b" else read_preset(name)
    keys = {key: value for key, value in content.items() if not key.startswith("_")}
    config = transformers.AutoConfig.for_model(**keys)
    assert ours(content) == counted(on_meta(config))
