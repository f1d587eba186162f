"""What one decode step reads, by where it stands: the bytes that the law divides by rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from moeprof.errors import InputError
from moeprof.model import MoEModel, Precision, load_precision, weight_bytes
from moeprof.result import Result

# Read whole by every step wherever the experts stand; the shared expert has a field of its own.
_EACH_STEP = ("attention", "dense", "indexer", "router", "head", "norms")

_MULTIPLIED = ("attention", "dense", "indexer", "router")


@dataclass(frozen=True)
class DecodeWork(Result):
    """Bytes of one step. A MoE layer reads `shared_bytes` and `expert_bytes` for each distinct
    expert; `dense_bytes` and `kv_bytes` are of the whole step. `matrices` are the parts of an
    expert that are stored apart. The FLOP are of one token: of one expert that it is sent to, of
    the shared expert of a MoE layer, and of the rest of the model.
    """

    layers: int
    moe_layers: int
    expert_bytes: float
    shared_bytes: float = 0.0
    dense_bytes: float = 0.0
    kv_bytes: float = 0.0
    matrices: int = 3
    top_k: int = 0
    expert_flop: float = 0.0
    shared_flop: float = 0.0
    dense_flop: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.moe_layers <= self.layers:
            raise InputError(f"{self.moe_layers} MoE layers of {self.layers}")
        if not self.expert_bytes > 0:  # also refuses NaN
            raise InputError(f"expert_bytes {self.expert_bytes}: above 0 is needed")

    def with_sequences(self, sequences: float) -> DecodeWork:
        """The same step with `sequences` times the KV."""
        return replace(self, kv_bytes=self.kv_bytes * sequences)


def decode_work(
    model: MoEModel,
    precision: str | Mapping[str, str] | Precision,
    *,
    context_tokens: int = 0,
    kv_dtype: str = "bf16",
) -> DecodeWork:
    """What a step of one token reads, with `context_tokens` before it.

    Raises ModelError where the model's tensors were not counted, InputError for a dense model.
    """
    if not model.moe_layers:
        raise InputError(f"{model.name} has no routed experts to offload")
    sizes = weight_bytes(model, load_precision(precision, model))
    moe_layers = len(model.moe_layers)
    dense = sum(sizes[name] for name in _EACH_STEP)
    if model.tied_embeddings:
        dense += sizes["embedding"]
    return DecodeWork(
        layers=model.layers,
        moe_layers=moe_layers,
        expert_bytes=sizes["routed"] / (moe_layers * model.experts),
        shared_bytes=sizes["shared"] / moe_layers,
        dense_bytes=dense,
        kv_bytes=kv_read_bytes(model, context_tokens, kv_dtype),
        top_k=model.top_k,
        expert_flop=2 * model.expert_parameters,
        shared_flop=2 * model.parameters["shared"] / moe_layers,
        dense_flop=_dense_flop(model, context_tokens),
    )


def _dense_flop(model: MoEModel, context_tokens: int) -> float:
    """Twice the parameters outside of experts, and attention over `context_tokens` by its heads.

    The head is left out: of a prompt the last token alone needs it.
    """
    weights = sum(model.parameters[name] for name in _MULTIPLIED)
    if model.attention is None:
        return 2.0 * weights
    layers = model.layers - (model.linear.layers if model.linear else 0)
    pairs = layers * context_tokens
    indexer = model.indexer
    if indexer is not None and indexer.block_size and indexer.top_blocks:
        chosen = indexer.block_size * indexer.top_blocks
        pairs -= indexer.layers * max(0, context_tokens - chosen)
    return 2.0 * weights + 4.0 * pairs * model.attention.heads * model.attention.head_dim


def kv_read_bytes(model: MoEModel, context_tokens: int, kv_dtype: str = "bf16") -> float:
    """Cache bytes that one token's attention reads, all layers together.

    With an indexer that chooses blocks, all index keys and the keys and values of the chosen
    blocks alone; layers with a sliding window read the window.
    """
    whole = model.cache_bytes_per_sequence_per_rank(context_tokens, 1, kv_dtype, kv_dtype)
    indexer = model.indexer
    if indexer is None or not (indexer.block_size and indexer.top_blocks):
        return whole
    chosen = indexer.block_size * indexer.top_blocks
    beyond = max(0, context_tokens - chosen)
    attending = model.layers - (model.linear.layers if model.linear else 0)
    token = model.kv_bytes_per_token_per_rank(1, kv_dtype, kv_dtype)
    keys = indexer.layers * _index_key(model, kv_dtype)
    return whole - beyond * (token - keys) * indexer.layers / attending


def _index_key(model: MoEModel, dtype: str) -> int:
    from moeprof.model import weight_format

    assert model.indexer is not None
    return weight_format(dtype).tensor_bytes((model.indexer.head_dim,))
