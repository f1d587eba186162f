"""Which of the rows that a router sees are this rank's tokens, and where they stand in its step.

Learned from vLLM's own capturer (vllm-project/vllm,
vllm/model_executor/layers/fused_moe/routed_experts_capturer.py), which knows four layouts under
data parallelism. Where it gathers the shards of sequence parallelism over the tensor parallel
group, each rank here keeps its own shard: no collective is added to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from moeprof.capture.vllm.ranks import Rank


@dataclass(frozen=True)
class Own:
    """Rows [first, first + count) of what the router saw are rows [step_first, ...) of the step."""

    first: int
    count: int
    step_first: int = 0


def own_rows(
    rank: Rank, seen: int, dp_tokens: Sequence[int], shards: Sequence[int] | None
) -> Own | None:
    """This rank's among `seen` rows; None if no layout that vLLM has explains their number.

    `dp_tokens` are the tokens of each data parallel rank, padded as their forwards are; `shards`
    the rows that each rank of the flattened expert parallel group gives to a naive dispatch.
    """
    own = dp_tokens[rank.dp]
    shard = -(-own // rank.tp_size)
    if rank.sequence_parallel and seen == shard:  # before the others: a step may be one token
        first = rank.tp * shard
        return Own(0, max(0, min(shard, own - first)), first)
    if seen == sum(dp_tokens):
        return _once(rank, Own(sum(dp_tokens[: rank.dp]), own))
    if seen == own:
        return _once(rank, Own(0, own))
    if shards and seen == sum(shards) and len(shards) % len(dp_tokens) == 0:
        per_rank = len(shards) // len(dp_tokens)
        return _once(rank, Own(sum(shards[: rank.dp * per_rank]), own))
    return None


def _once(rank: Rank, own: Own) -> Own:
    """Where all tensor parallel ranks see all rows, the first keeps them."""
    return own if rank.tp == 0 else replace(own, count=0)


def follow_forward(rank: Rank) -> Callable[[torch.Tensor], Own | None]:
    """What finds this rank's rows in a forward of vLLM, from what it says of that forward."""
    from vllm.forward_context import get_forward_context

    def find(ids: torch.Tensor) -> Own | None:
        metadata = get_forward_context().dp_metadata
        if metadata is None:
            return _once(rank, Own(0, ids.shape[0]))
        dp_tokens = metadata.num_tokens_across_dp_cpu.tolist()
        return own_rows(rank, ids.shape[0], dp_tokens, getattr(metadata, "local_sizes", None))

    return find
