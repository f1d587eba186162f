"""GGUF files of the weights of transformers models, so that both engines run the same model.

Names and keys are those of llama.cpp's own converter (conversion/minimax.py, conversion/qwen.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

TOKENIZER = Path(__file__).parents[3] / "moeprof" / "demo" / "tiny_m3" / "tokenizer.json"
SIGMOID = 2  # LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID
CHAT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant]"


def write_m3(path: Path, model: Any, kind: str = "F32") -> Path:
    """A MiniMax-M3 whose first layers are dense; norms of Gemma's kind, 1 + w."""
    config = model.config.get_text_config()
    writer = start(path, "minimax-m3", config, gemma_norms=True, expert_kind=kind)
    dense = config.mlp_layer_types.count("dense")
    writer.keys(
        leading_dense_block_count=dense,
        expert_feed_forward_length=config.intermediate_size,
        feed_forward_length=config.dense_intermediate_size,
        expert_shared_count=config.shared_intermediate_size // config.intermediate_size,
        expert_gating_func=SIGMOID,
        expert_weights_scale=float(config.routed_scaling_factor),
        expert_weights_norm=True,
    )
    writer.keys(
        **{
            "attention.indexer.head_count": config.index_n_heads,
            "attention.indexer.key_length": config.index_head_dim,
            "attention.indexer.top_k": config.index_topk_blocks,
            "attention.indexer.block_size": config.index_block_size,
            "attention.indexer.local_blocks": config.index_local_blocks,
            "rope.dimension_count": config.rotary_dim,
        }
    )
    for number, layer in enumerate(decoder(model).layers):
        block = f"blk.{number}"
        writer.attention(block, layer)
        mlp = layer.mlp
        if number < dense:
            writer.merged(f"{block}.ffn_{{}}.weight", mlp.gate_up_proj.weight)
            writer.put(f"{block}.ffn_down.weight", mlp.down_proj.weight)
            continue
        writer.put(f"{block}.exp_probs_b.bias", mlp.gate.e_score_correction_bias)
        writer.experts(block, mlp)
        shared = mlp.shared_experts
        writer.merged(f"{block}.ffn_{{}}_shexp.weight", shared.gate_up_proj.weight)
        writer.put(f"{block}.ffn_down_shexp.weight", shared.down_proj.weight)
        for name in ("q_proj", "k_proj", "q_norm", "k_norm"):
            weight = getattr(layer.self_attn.indexer, name).weight
            writer.put(f"{block}.indexer.{name}.weight", weight, norm=name.endswith("norm"))
    return writer.finish(model)


def write_qwen3(path: Path, model: Any, kind: str = "F32") -> Path:
    """A Qwen3-MoE: softmax, no bias, no shared expert, every layer routes."""
    config = model.config
    writer = start(path, "qwen3moe", config, gemma_norms=False, expert_kind=kind)
    writer.keys(
        expert_feed_forward_length=config.moe_intermediate_size,
        feed_forward_length=config.intermediate_size,
    )
    for number, layer in enumerate(decoder(model).layers):
        writer.attention(f"blk.{number}", layer)
        writer.experts(f"blk.{number}", layer.mlp)
    return writer.finish(model)


def decoder(model: Any) -> Any:
    """The module that holds the layers."""
    return getattr(model.model, "language_model", model.model)


def start(path: Path, arch: str, config: Any, *, gemma_norms: bool, expert_kind: str) -> Writer:
    """A writer that has what all architectures have."""
    writer = Writer(path, arch, gemma_norms, expert_kind)
    rope = config.rope_parameters["rope_theta"]
    writer.keys(
        block_count=config.num_hidden_layers,
        context_length=config.max_position_embeddings,
        embedding_length=config.hidden_size,
        expert_count=getattr(config, "num_local_experts", None) or config.num_experts,
        expert_used_count=config.num_experts_per_tok,
    )
    writer.keys(
        **{
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
            "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
            "rope.freq_base": float(rope),
        }
    )
    writer.vocabulary(config.vocab_size)
    return writer


class Writer:
    """gguf-py's writer, with the names that MoE layers share."""

    def __init__(self, path: Path, arch: str, gemma_norms: bool, expert_kind: str) -> None:
        self._path, self._arch, self._one = path, arch, float(gemma_norms)
        self._kind = gguf.GGMLQuantizationType[expert_kind]
        self._out = gguf.GGUFWriter(path, arch)
        self._out.add_name(f"tiny-{arch}")

    def keys(self, **values: Any) -> None:
        """Keys of the architecture: whole numbers, real ones and booleans."""
        for name, value in values.items():
            adders = {bool: self._out.add_bool, int: self._out.add_uint32}
            add = adders.get(type(value), self._out.add_float32)
            add(f"{self._arch}.{name}", value)

    def vocabulary(self, size: int) -> None:
        """The byte-level BPE that ships with moeprof's tiny M3, cut or filled up to `size`."""
        bpe = json.loads(TOKENIZER.read_text())
        tokens = {number: token for token, number in bpe["model"]["vocab"].items()}
        tokens |= {each["id"]: each["content"] for each in bpe["added_tokens"]}
        special = {each["id"] for each in bpe["added_tokens"]}
        names = [tokens.get(number, f"<unused {number}>") for number in range(size)]
        kinds = [3 if n in special else 1 if n in tokens else 5 for n in range(size)]
        merges = [m if isinstance(m, str) else " ".join(m) for m in bpe["model"]["merges"]]
        self._out.add_tokenizer_model("gpt2")
        self._out.add_tokenizer_pre("gpt-2")
        self._out.add_token_list(names)
        self._out.add_token_types(kinds)
        self._out.add_token_merges([m for m in merges if m.replace(" ", "") in set(names)])
        self._out.add_bos_token_id(0)
        self._out.add_eos_token_id(1)
        self._out.add_add_bos_token(True)
        self._out.add_chat_template(CHAT)

    def put(self, name: str, weight: torch.Tensor, *, norm: bool = False) -> None:
        """One tensor in float32."""
        values = weight.detach().float() + (self._one if norm else 0.0)
        self._out.add_tensor(name, np.ascontiguousarray(values.numpy()))

    def merged(self, name: str, gate_up: torch.Tensor) -> None:
        """`gate` and `up` of a tensor that holds one below the other."""
        for part, weight in zip(("gate", "up"), gate_up.chunk(2, dim=-2), strict=True):
            self.put(name.format(part), weight)

    def experts(self, block: str, mlp: Any) -> None:
        """The router, and every expert's matrices, in the expert's type."""
        self.put(f"{block}.ffn_gate_inp.weight", mlp.gate.weight)
        gate, up = mlp.experts.gate_up_proj.chunk(2, dim=-2)
        for part, weight in (("gate", gate), ("up", up), ("down", mlp.experts.down_proj)):
            values = np.ascontiguousarray(weight.detach().float().numpy())
            stored = gguf.quantize(values, self._kind)
            name = f"{block}.ffn_{part}_exps.weight"
            self._out.add_tensor(name, stored, raw_dtype=self._kind)

    def attention(self, block: str, layer: Any) -> None:
        """What every layer has."""
        attention = layer.self_attn
        self.put(f"{block}.attn_norm.weight", layer.input_layernorm.weight, norm=True)
        self.put(f"{block}.ffn_norm.weight", layer.post_attention_layernorm.weight, norm=True)
        for part in ("q", "k", "v"):
            self.put(f"{block}.attn_{part}.weight", getattr(attention, f"{part}_proj").weight)
        self.put(f"{block}.attn_output.weight", attention.o_proj.weight)
        self.put(f"{block}.attn_q_norm.weight", attention.q_norm.weight, norm=True)
        self.put(f"{block}.attn_k_norm.weight", attention.k_norm.weight, norm=True)

    def finish(self, model: Any) -> Path:
        """Embedding, last norm and head; then the file."""
        inner = decoder(model)
        self.put("token_embd.weight", inner.embed_tokens.weight)
        self.put("output_norm.weight", inner.norm.weight, norm=True)
        self.put("output.weight", model.lm_head.weight)
        self._out.write_header_to_file()
        self._out.write_kv_data_to_file()
        self._out.write_tensors_to_file()
        self._out.close()
        return self._path
