"""What attention reads and computes, by kind: dense, grouped, latent, sparse with an indexer,
windowed, linear."""

from __future__ import annotations

from moeprof.model import MoEModel, weight_format
from moeprof.projection.deployment import Deployment
from moeprof.projection.memory.sequence_cache import SequenceCache
from moeprof.projection.step.batch import Batch

# Tokens that an indexer keeps where it chooses single tokens: index_topk of DeepSeek-V3.2 and GLM-5
# (https://huggingface.co/deepseek-ai/DeepSeek-V3.2 config.json).
_TOKENS_CHOSEN = 2048


def chosen_tokens(model: MoEModel) -> int | None:
    """How many tokens an indexer lets a query attend to; None without one."""
    indexer = model.indexer
    if indexer is None:
        return None
    if indexer.block_size and indexer.top_blocks:
        return indexer.block_size * indexer.top_blocks
    return _TOKENS_CHOSEN


def attended_bytes(deployment: Deployment, cache: SequenceCache, context: float) -> float:
    """Bytes of cache that one sequence of `context` tokens reads on a rank, in one decode step.

    Behind an indexer the keys of the chosen tokens, and the index keys of all; the states of
    linear attention are read and written.
    """
    model, tp = deployment.model, deployment.parallelism.tp
    states = 2 * cache.state_bytes
    chosen = chosen_tokens(model)
    if chosen is None or model.indexer is None:
        length = int(context)
        return (
            states
            + model.cache_bytes_per_sequence_per_rank(
                length, tp, deployment.kv_dtype, deployment.index_dtype
            )
            - cache.state_bytes
        )
    index = model.indexer.layers * weight_format(deployment.index_dtype).tensor_bytes(
        (model.indexer.head_dim,)
    )
    keys = cache.bytes_per_token - index
    sparse = keys * model.indexer.layers / model.layers
    read = sparse * min(context, chosen) + (keys - sparse) * context
    return states + read + index * context


def attention_flop(model: MoEModel, batch: Batch) -> float:
    """Operations of attention over the prompt tokens of `batch`, all heads, projections apart.

    4 x heads x head size x pairs of tokens for scores and values, 2 x index heads x size x pairs
    for an indexer.
    """
    attention, tokens = model.attention, batch.prefill
    if attention is None or not tokens:
        return 0.0
    seen = batch.prefill_context + tokens / (2 * max(1, batch.prefill_sequences))
    layers = model.layers - (model.linear.layers if model.linear else 0)
    indexed = model.indexer.layers if model.indexer else 0
    windowed = attention.sliding_layers
    pairs = (layers - indexed - windowed) * seen
    pairs += windowed * min(seen, attention.sliding_window or seen)
    pairs += indexed * min(seen, chosen_tokens(model) or seen)
    flop = 4 * attention.heads * attention.head_dim * pairs
    if model.indexer is not None:
        flop += 2 * model.indexer.heads * model.indexer.head_dim * indexed * seen
    return tokens * flop
