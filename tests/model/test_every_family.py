"""Our reading of every MoE family of the installed transformers against the modules it builds."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from moeprof.errors import ModelError
from moeprof.model import MoEModel

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
from transformers.models.auto.configuration_auto import (  # noqa: E402
    CONFIG_MAPPING_NAMES,
    model_type_to_module_name,
)

MODELS = Path(transformers.__file__).parent / "models"
ROUTER_CLASS = re.compile(r"^class \w*(Router|Experts|ExpertGLU|TopKGating|CDMoE)\w*\(", re.M)
PARTS = re.compile(r"(?i)expert|rout|gat|moe|ffn")
OTHER_TOWERS = re.compile(r"vision|visual|audio|talker|code_predictor|sam_|encoder$")

# Small, with patterns of layers that differ from every default; a family takes what it has.
SMALL = {
    "num_hidden_layers": 8,
    "num_experts": 12,
    "num_local_experts": 12,
    "n_routed_experts": 12,
    "moe_num_experts": 12,
    "num_experts_per_tok": 3,
    "num_experts_per_token": 3,
    "moe_topk": 3,
    "moe_k": 3,
    "moe_top_k": 3,
    "top_k_experts": 3,
    "moe_intermediate_size": 32,
    "is_moe": True,
    "enable_moe_block": True,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "first_k_dense_replace": 2,
    "num_dense_layers": 3,
    "mlp_only_layers": [0, 5],
    "decoder_sparse_step": 2,
    "interleave_moe_layer_step": 4,
    "expert_layer_period": 3,
    "expert_layer_offset": 2,
    "moe_layer_start_index": 2,
    "moe_layer_end_index": 6,
}
# What else a class needs before it can be built.
NEEDED: dict[str, dict[str, Any]] = {
    "dbrx": {
        "attn_config": {"rope_theta": 1e4},
        "ffn_config": {"moe_num_experts": 12, "moe_top_k": 3},
    },
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense"] * 3 + ["sparse"] * 5},
    "dots1": {"n_shared_experts": 1},
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [32, 16]},
    "hunyuan_v1_moe": {"head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 4},
    "nemotron_h": {"layers_block_type": ["moe", "full_attention", "moe", "mlp"] * 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 64,
        "indexer_compress_ratio": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
}
# Encoders and decoders count their layers each from 0, so one index would name two.
REFUSED = {"nllb-moe", "switch_transformers"}
# Default configurations that leave open what building or describing a model needs.
NO_DEFAULT = {
    "dbrx": "rope_theta of attn_config is unset",
    "deepseek_ocr2": "mlp_layer_types is unset",
    "deepseek_ocr2_text": "mlp_layer_types is unset",
    "deepseek_v2": "num_experts_per_tok is unset",
    "diffusion_gemma": "num_experts is unset",
    "diffusion_gemma_text": "num_experts is unset",
    "dots1": "n_routed_experts is unset",
    "hunyuan_v1_moe": "head_dim is unset",
    "lfm2_moe": "layer_types is unset",
    "qwen3_omni_moe": "its talker's shared_expert_intermediate_size is unset",
    "qwen4_exp": "its indexer is unset",
    "qwen4_exp_text": "its indexer is unset",
}


def moe_model_types() -> list[str]:
    """Model types of every family whose modelling file defines a router or experts."""
    families = {
        file.parent.name
        for file in MODELS.glob("*/modeling_*.py")
        if ROUTER_CLASS.search(file.read_text(encoding="utf-8"))
    }
    return [
        model_type
        for model_type in CONFIG_MAPPING_NAMES
        if model_type_to_module_name(model_type) in families and not OTHER_TOWERS.search(model_type)
    ]


def model_class(config: Any) -> Any:
    """The class of the family's modelling file that is built from `config`."""
    folder = model_type_to_module_name(config.model_type)
    module = import_module(f"transformers.models.{folder}.modeling_{folder}")
    fitting = [
        kind
        for name, kind in vars(module).items()
        if isinstance(kind, type)
        and issubclass(kind, transformers.PreTrainedModel)
        and kind.config_class is type(config)
        and name.endswith(("Model", "ForConditionalGeneration"))
        and "PreTrained" not in name
    ]
    return fitting[0] if fitting else None


def routed(model: Any) -> dict[int, tuple[int, int]]:
    """(experts, top_k) by native layer index, from attributes of the modules themselves."""
    experts: dict[int, int] = {}
    top_k: dict[int, int] = {}
    for path, module in model.named_modules():
        index = re.search(r"\.(\d+)\.", path)
        kind = type(module).__name__
        if index is None or OTHER_TOWERS.search(path) or not PARTS.search(kind):
            continue
        layer, own = int(index[1]), vars(module)
        for name in ("num_routed_experts", "num_experts"):
            if isinstance(own.get(name), int):
                experts.setdefault(layer, own[name])
        settings = {**vars(own.get("config", module)), **own}
        for name in ("top_k", "num_experts_per_tok", "moe_top_k", "top_k_experts"):
            if isinstance(settings.get(name), int):
                top_k[layer] = settings[name]
    return {layer: (experts[layer], top_k[layer]) for layer in sorted(experts)}


def built(config: Any) -> dict[int, tuple[int, int]]:
    with torch.device("meta"):
        return routed(model_class(config)(config))


def ours(config: Any) -> dict[int, tuple[int, int]]:
    model = MoEModel.from_config(config.to_dict(), count_tensors=False)
    return dict.fromkeys(model.moe_layers, (model.experts, model.top_k))


def small_config(model_type: str) -> Any:
    default = transformers.AutoConfig.for_model(model_type)
    known = {**default.to_dict(), **default.attribute_map}
    changes = {key: value for key, value in SMALL.items() if key in known}
    return type(default)(**{**changes, **NEEDED.get(model_type, {})})


MODEL_TYPES = moe_model_types()
TEXT_TYPES = [
    name
    for name in MODEL_TYPES
    if not {"text_config", "thinker_config"}
    & set(transformers.AutoConfig.for_model(name).sub_configs)
    and "expert" in str(transformers.AutoConfig.for_model(name).to_dict())
]


@pytest.mark.parametrize("model_type", sorted(set(MODEL_TYPES) - REFUSED - set(NO_DEFAULT)))
def test_the_default_configuration_is_read_as_it_is_built(model_type: str) -> None:
    config = transformers.AutoConfig.for_model(model_type)
    assert ours(config) == built(config)


@pytest.mark.parametrize("model_type", sorted(set(NO_DEFAULT) & set(MODEL_TYPES)))
def test_what_has_no_default_has_none(model_type: str) -> None:
    config = transformers.AutoConfig.for_model(model_type)
    with pytest.raises((TypeError, AttributeError, ModelError)):
        ours(config)
        built(config)


@pytest.mark.parametrize("model_type", sorted(set(TEXT_TYPES) - REFUSED))
def test_a_small_uneven_configuration_is_read_as_it_is_built(model_type: str) -> None:
    config = small_config(model_type)
    found = built(config)
    assert found
    assert ours(config) == found


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_what_cannot_be_described_is_refused_in_a_sentence(model_type: str) -> None:
    config = transformers.AutoConfig.for_model(model_type)
    with pytest.raises(ModelError, match=f"is_encoder_decoder: '{model_type}'"):
        MoEModel.from_config(config.to_dict(), count_tensors=False)
