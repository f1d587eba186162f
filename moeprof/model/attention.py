"""How a model attends, and what each token leaves in the cache."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from moeprof.errors import ModelError
from moeprof.model.formats import weight_format


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention: `heads` query heads share `kv_heads` keys and values.

    With `latent_dim` it is multi-head latent attention: one vector of that length (kv_lora_rank
    plus the rotary key) stands for the keys and values of all heads. Of the layers
    `sliding_layers` look back no further than `sliding_window` tokens.
    """

    heads: int
    kv_heads: int
    head_dim: int
    latent_dim: int | None = None
    sliding_layers: int = 0
    sliding_window: int | None = None


@dataclass(frozen=True)
class LinearAttention:
    """Layers that keep one state a sequence instead of keys and values a token.

    The state of a layer is value_heads x key_dim x value_dim, and the last `kernel` - 1 inputs of
    the convolution over queries, keys and values.
    """

    layers: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    def state_bytes_per_rank(self, tp: int, state_dtype: str, conv_dtype: str) -> int:
        """Bytes of one sequence on one of `tp` tensor-parallel ranks; heads are split."""
        _check_tp(tp)
        value_heads, key_heads = ceil(self.value_heads / tp), ceil(self.key_heads / tp)
        mixed = 2 * key_heads * self.key_dim + value_heads * self.value_dim
        state = weight_format(state_dtype).tensor_bytes((value_heads, self.key_dim, self.value_dim))
        inputs = weight_format(conv_dtype).tensor_bytes((mixed, self.kernel - 1))
        return self.layers * (state + inputs)


@dataclass(frozen=True)
class Indexer:
    """The branch that chooses keys: `heads` query heads over ONE index key a token.

    `layers` is how many layers have it; a query attends to `top_blocks` blocks of `block_size`
    tokens (None where the configuration does not say, or chooses single tokens).
    """

    layers: int
    heads: int
    head_dim: int
    block_size: int | None = None
    top_blocks: int | None = None


def kv_bytes_per_token_per_rank(attention: Attention, layers: int, tp: int, dtype: str) -> int:
    """Keys and values of one token in `layers` layers on one of `tp` tensor-parallel ranks.

    2 x layers x heads of the rank x head_dim; heads are split at most `kv_heads` ways and
    replicated beyond. A latent vector belongs to all heads, so every rank holds it whole.
    """
    _check_tp(tp)
    chosen = weight_format(dtype)
    if attention.latent_dim is not None:
        return layers * chosen.tensor_bytes((attention.latent_dim,))
    heads = ceil(attention.kv_heads / tp)
    return 2 * layers * heads * chosen.tensor_bytes((attention.head_dim,))


def _check_tp(tp: int) -> None:
    if tp < 1:
        raise ModelError(f"tensor parallel size {tp} is below 1")
