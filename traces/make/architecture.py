"""The shape of tiny-m3, its trainable form, and the folder that is shipped."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig, MiniMaxM3VLTextConfig, PreTrainedTokenizerFast
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLForCausalLM

LAYERS = 9
VOCABULARY = 2048
BOS, EOS = 0, 1


def config(sparse_attention: bool = True) -> MiniMaxM3VLTextConfig:
    """M3's layer plan in small: a dense first layer, then MoE layers with sparse attention."""
    attention = "minimax_m3_sparse" if sparse_attention else "full_attention"
    return MiniMaxM3VLTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=24,
        shared_intermediate_size=48,
        dense_intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rotary_dim=16,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.5,
        },
        max_position_embeddings=4096,
        num_local_experts=64,
        num_experts_per_tok=4,
        routed_scaling_factor=2.0,
        index_n_heads=2,
        index_head_dim=32,
        index_block_size=128,
        index_topk_blocks=16,
        index_local_blocks=1,
        mlp_layer_types=["dense"] + ["sparse"] * (LAYERS - 1),
        layer_types=["full_attention"] + [attention] * (LAYERS - 1),
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def trainable(seed: int) -> MiniMaxM3VLForCausalLM:
    """The model as it is trained: full attention in every layer, in float32.

    M3's indexer keeps 16 blocks of 128 keys, so up to 2048 tokens it keeps every key and sparse
    attention is full attention. Training at 512 tokens therefore needs no mask, and the indexer,
    which only selects, would get no gradient anyway.
    """
    torch.manual_seed(seed)
    return MiniMaxM3VLForCausalLM(config(sparse_attention=False))


def save(
    model: MiniMaxM3VLForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int
) -> None:
    """Write the standard folder in bfloat16, with M3's indexers added at their initial values."""
    torch_state = torch.get_rng_state()
    torch.manual_seed(seed + 1)
    shipped = MiniMaxM3VLForCausalLM(config())
    torch.set_rng_state(torch_state)
    missing, unexpected = shipped.load_state_dict(model.state_dict(), strict=False)
    if unexpected or any(".indexer." not in name for name in missing):
        raise RuntimeError(f"weights do not fit: {missing} {unexpected}")
    shipped.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS)
    shipped.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
