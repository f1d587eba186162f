"""A tiny random Qwen3-MoE that vLLM serves: four layers, the first dense, 8 experts, top-2."""

from __future__ import annotations

from pathlib import Path

LAYERS, EXPERTS, TOP_K = 4, 8, 2
MOE_LAYERS = (1, 2, 3)
VOCABULARY = 320


def write_tiny_model(folder: Path, seed: int = 0) -> Path:
    """The checkpoint and a tokenizer of bytes, in float32; what is there already is kept."""
    if (folder / "model.safetensors").exists():
        return folder
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        mlp_only_layers=[0],
        decoder_sparse_step=1,
        norm_topk_prob=True,
        max_position_embeddings=2048,
        initializer_range=0.2,  # or all tokens look alike to the routers
        bos_token_id=None,
        eos_token_id=VOCABULARY - 1,
        dtype="float32",
    )
    model = Qwen3MoeForCausalLM(config).to(torch.float32)
    model.save_pretrained(folder)
    _byte_tokenizer().save_pretrained(folder)
    return folder


def _byte_tokenizer() -> object:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(alphabet)}
    vocabulary["<unk>"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
