"""What the modelling code of an architecture fixes and its config.json does not say.

One row a `model_type`, read from the modelling files of transformers 5.23.0. It is data: the
inventory of tensors has no branch for a family. A model type without a row is refused when
parameters are counted, for its biases and norms would be guesses.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from moeprof.errors import ModelError


@dataclass(frozen=True)
class Architecture:
    """Defaults where the configuration is silent; a key of config.json wins over them."""

    qk_norm: str = "none"  # none; per_head: one vector of head_dim; full: all heads at once
    qkv_bias: bool = False  # on queries, keys and values
    output_bias: bool = False  # the output projection has a bias where the others have one
    router_bias: bool = False  # one number an expert, added to scores or used to select
    expert_bias: bool = False  # on both projections of every expert
    shared_gate: bool = False  # a gate of width one before the shared expert
    attention_sinks: bool = False  # one learnt logit a head
    vision: bool = False  # the CLIP-like tower and two-step projector of MiniMax-M3


_M3_TEXT = Architecture(qk_norm="per_head", router_bias=True)

ARCHITECTURES: dict[str, Architecture] = {
    "minimax_m3_vl": Architecture(qk_norm="per_head", router_bias=True, vision=True),
    "minimax_m3_vl_text": _M3_TEXT,
    "minimax_m3": _M3_TEXT,
    "minimax_m2": Architecture(qk_norm="full", router_bias=True),
    "qwen3_moe": Architecture(qk_norm="per_head", output_bias=True),
    "qwen3": Architecture(qk_norm="per_head", output_bias=True),
    "qwen2_moe": Architecture(qkv_bias=True, shared_gate=True),
    "qwen2": Architecture(qkv_bias=True),
    "mixtral": Architecture(),
    "mistral": Architecture(),
    "llama": Architecture(output_bias=True),
    "olmoe": Architecture(qk_norm="full", output_bias=True),
    "granitemoe": Architecture(output_bias=True),
    "glm4_moe": Architecture(router_bias=True),
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
