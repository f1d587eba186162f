"""What the modelling code of an architecture fixes and its config.json does not say.

One row a `model_type`, read from the modelling files of transformers 5.23.0. It is data: the
inventory of tensors has no branch for a family. A model type without a row is refused when
parameters are counted, for its biases and norms would be guesses.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from moeprof.errors import ModelError


@dataclass(frozen=True)
class Architecture:
    """Defaults where the configuration is silent; a key of config.json wins over them."""

    qk_norm: str = "none"  # none; per_head: one vector of head_dim; full: all heads at once
    qkv_bias: bool = False  # on queries, keys and values
    output_bias: bool = False  # the output projection has a bias where the others have one
    query_gate: bool = False  # the query projection also yields a gate on the output
    latent: bool = False  # multi-head latent attention: keys and values from one short vector
    linear: bool = False  # gated delta rule in the layers that layer_types calls linear_attention
    attention_sinks: bool = False  # one learnt logit a head
    token_indexer: bool = False  # DeepSeek's indexer, which chooses tokens; else M3's, blocks
    router_bias: bool = False  # one number an expert, added to scores or used to select
    expert_bias: bool = False  # on both projections of every expert
    shared_gate: bool = False  # a gate of width one before the shared expert
    vision: str = ""  # the tower, a name in `vision_tensors`
    prediction: str = ""  # tables of the multi-token prediction module: none, shared, copies


_M3 = Architecture(qk_norm="per_head", router_bias=True)
_DEEPSEEK = Architecture(latent=True, router_bias=True, prediction="copies")
_SPARSE_DEEPSEEK = replace(_DEEPSEEK, token_indexer=True)
_QWEN3 = Architecture(qk_norm="per_head", output_bias=True)
_QWEN3_NEXT = replace(_QWEN3, query_gate=True, linear=True, shared_gate=True, prediction="shared")

ARCHITECTURES: dict[str, Architecture] = {
    "minimax_m3_vl": replace(_M3, vision="clip"),
    "minimax_m3_vl_text": _M3,
    "minimax_m3": _M3,
    "minimax_m2": Architecture(qk_norm="full", router_bias=True),
    "deepseek_v2": replace(_DEEPSEEK, router_bias=False, prediction=""),
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "kimi_k25": replace(_DEEPSEEK, vision="moonvit"),
    "deepseek_v32": _SPARSE_DEEPSEEK,
    "glm_moe_dsa": replace(_SPARSE_DEEPSEEK, prediction="shared"),
    "glm4_moe_lite": replace(_DEEPSEEK, prediction="shared"),
    # GLM-4.5 and 4.7 repeat embedding and head in their prediction module, GLM-4.6 does not, and
    # no key tells (https://github.com/vllm-project/vllm/pull/27597).
    "glm4_moe": Architecture(router_bias=True, prediction="copies"),
    "qwen3_5_moe": replace(_QWEN3_NEXT, vision="qwen"),
    "qwen3_5_moe_text": _QWEN3_NEXT,
    "qwen3_5": replace(_QWEN3_NEXT, vision="qwen"),
    "qwen3_5_text": _QWEN3_NEXT,
    "qwen3_next": _QWEN3_NEXT,
    "qwen3_vl_moe": replace(_QWEN3, vision="qwen"),
    "qwen3_vl_moe_text": _QWEN3,
    "qwen3_vl": replace(_QWEN3, vision="qwen"),
    "qwen3_vl_text": _QWEN3,
    "qwen3_moe": _QWEN3,
    "qwen3": _QWEN3,
    "qwen2_moe": Architecture(qkv_bias=True, shared_gate=True),
    "qwen2": Architecture(qkv_bias=True),
    "mixtral": Architecture(),
    "mistral": Architecture(),
    "llama": Architecture(output_bias=True),
    "olmoe": Architecture(qk_norm="full", output_bias=True),
    "flex_olmo": Architecture(qk_norm="full", output_bias=True),
    "granitemoe": Architecture(output_bias=True),
    "ernie4_5_moe": Architecture(router_bias=True),
    "exaone_moe": Architecture(qk_norm="per_head", router_bias=True),
    "hy_v3": Architecture(qk_norm="per_head", output_bias=True, router_bias=True),
    "mellum": Architecture(qk_norm="per_head", output_bias=True),
    "solar_open": Architecture(router_bias=True),
    "dots1": Architecture(qk_norm="per_head", output_bias=True, router_bias=True),
    "gpt_oss": Architecture(
        qkv_bias=True, output_bias=True, router_bias=True, expert_bias=True, attention_sinks=True
    ),
}


def architecture_of(model_type: str, where: str) -> Architecture:
    """The row of `model_type`. Raises ModelError naming `where` and near types if it has none."""
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    near = difflib.get_close_matches(model_type, ARCHITECTURES, n=3)
    known = ", ".join(near or ARCHITECTURES)
    raise ModelError(
        f"{where}: model_type: parameters of '{model_type}' are not known exactly; known: {known}"
    )
