"""What one running sequence keeps on one rank: keys and values, and states of linear attention."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from moeprof.model import MoEModel, weight_format
from moeprof.model.attention import kv_bytes_per_token_per_rank

# DEFAULT_BLOCK_SIZE of https://docs.vllm.ai/en/stable/api/vllm/config/cache/, tokens of a KV block.
DEFAULT_BLOCK_TOKENS = 16

STATE_SOURCE = (
    "one state a sequence in FP32, and the BF16 inputs of its convolution (arXiv 2412.06464), as "
    "in https://github.com/vllm-project/vllm/pull/34489"
)
_LATENT = "one latent vector a token and layer, whole on every rank: arXiv 2405.04434, 2.1"
_INDEXED = "https://github.com/SemiAnalysisAI/InferenceX/pull/2511 (KV and index key a token)"
_WINDOW = (
    "layers with a window hold the window alone: "
    "https://docs.vllm.ai/en/latest/design/hybrid_kv_cache_manager/"
)
_HEADS = "keys and values a token, from heads and layers of config.json"


@dataclass(frozen=True)
class SequenceCache:
    """Bytes of a sequence on one of `tp` ranks, `draft` a token of them for a speculative draft."""

    model: MoEModel
    tp: int
    kv_dtype: str
    index_dtype: str
    draft: int = 0

    @property
    def block_tokens(self) -> int:
        """An indexer scores whole blocks, so KV is paged in its block size (128 for MiniMax-M3)."""
        indexer = self.model.indexer
        return (indexer and indexer.block_size) or DEFAULT_BLOCK_TOKENS

    @property
    def bytes_per_token(self) -> int:
        """Of one token, where every layer keeps it."""
        keys = self.model.kv_bytes_per_token_per_rank(self.tp, self.kv_dtype, self.index_dtype)
        return keys + self.draft

    @property
    def copies(self) -> int:
        """Ranks with the same KV: all of them for a latent vector, else those beyond its heads."""
        attention = self.model.attention
        heads = attention.kv_heads if attention and attention.latent_dim is None else 1
        return max(1, self.tp // heads)

    @property
    def block_bytes(self) -> int:
        """Of one block of tokens."""
        return self.bytes_per_token * self.block_tokens

    @property
    def state_bytes(self) -> int:
        """What does not grow with the sequence: states of linear attention."""
        return self.model.state_bytes_per_sequence_per_rank(self.tp)

    def kv_bytes(self, tokens: int) -> int:
        """Keys and values of `tokens`, in whole blocks; a sliding window holds no more than it."""
        tokens = ceil(tokens / self.block_tokens) * self.block_tokens
        whole = self.model.cache_bytes_per_sequence_per_rank(
            tokens, self.tp, self.kv_dtype, self.index_dtype
        )
        return whole - self.state_bytes + tokens * self.draft

    @property
    def source(self) -> str:
        """Where the rule for keys and values comes from."""
        if self.model.attention and self.model.attention.latent_dim is not None:
            return _LATENT
        if self.model.indexer is not None:
            return _INDEXED
        return _WINDOW if sliding_layers(self.model) else _HEADS


def sliding_layers(model: MoEModel) -> int:
    """Layers that keep no more tokens than their window."""
    attention = model.attention
    return attention.sliding_layers if attention and attention.sliding_window else 0


def prediction_kv_bytes(model: MoEModel, tp: int, kv_dtype: str, index_dtype: str) -> int:
    """Cache bytes a token of the modules for multi-token prediction, each one more layer."""
    # Each module has one projection of (hidden state, next embedding).
    modules = sum(g.count for g in model.prediction_tensors if g.name == "prediction_proj")
    if model.attention is None or not modules:
        return 0
    keys = kv_bytes_per_token_per_rank(model.attention, modules, tp, kv_dtype)
    if model.indexer is None:
        return keys
    return keys + modules * weight_format(index_dtype).tensor_bytes((model.indexer.head_dim,))
