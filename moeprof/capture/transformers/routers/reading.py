"""Reading ids and weights out of what a router returned or an experts module was called with.

These functions run inside the model's forward, under torch.compile and CUDA graph capture too:
they decide by type, dtype and shape alone, and compute with operations of fixed shape. Nothing
here waits for the device. Ids are taken as the model has them and never chosen anew from logits,
which in many models (MiniMax-M3) lack the bias that the choice was made with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

NO_EXPERT = -1  # an id that makes its token null in this layer


class Routed(NamedTuple):
    """The decisions of one router for some tokens, in the order and scale of the model."""

    ids: torch.Tensor  # [tokens, k] integers
    weights: torch.Tensor  # [tokens, k]
    logits: torch.Tensor | None = None  # [tokens, experts] as returned; in Gemma 4 probabilities


def routing_in_output(output: Any, top_k: int) -> Routed | None:
    """What a router decided, from what it returned; None where that cannot be told.

    Nearly all routers of transformers 5 return `(logits, weights, ids)`, possibly with more behind;
    those that come with a checkpoint often `(ids, weights)`.
    """
    if not isinstance(output, tuple | list) or len(output) < 2:
        return None
    if len(output) == 5 and isinstance(output[3], list):
        return _from_sorted(output[0], output[2], output[3], output[4], top_k)
    if len(output) == 2 and _is_real(output[0]):
        return _from_scores(output[0], output[1], top_k)
    if _is_whole(output[0]):
        return _from_ids(output[0], output[1], None, top_k)
    return _from_ids(output[2], output[1], output[0], top_k) if len(output) >= 3 else None


def routing_in_arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], top_k: int
) -> Routed | None:
    """The same from the arguments `(hidden, ids, weights)` of an experts module."""
    values = [*args, *kwargs.values()]
    return _from_ids(values[1], values[2], None, top_k) if len(values) >= 3 else None


def _from_ids(ids: Any, weights: Any, logits: Any, top_k: int) -> Routed | None:
    """Ids and weights `[..., k]`."""
    if not _is_whole(ids) or not _is_real(weights) or ids.shape != weights.shape:
        return None
    if ids.ndim < 2 or ids.shape[-1] != top_k:
        return None
    if ids.ndim != 2:
        ids, weights = ids.reshape(-1, top_k), weights.reshape(-1, top_k)
    return Routed(ids, weights, _a_row_a_token(logits, ids.shape[0]))


def _from_scores(scores: Any, logits: Any, top_k: int) -> Routed | None:
    """Scores `[tokens, experts]` that are 0 but for the chosen experts, and logits (Llama 4).

    A token whose scores are not k positive ones and zeros is no expert's: its choice is not known.
    """
    import torch

    if not _is_real(scores) or not _is_real(logits) or scores.shape != logits.shape:
        return None
    if scores.ndim != 2 or scores.shape[-1] <= top_k:
        return None
    best, ids = scores.detach().topk(top_k + 1, dim=-1)
    known = (best[:, top_k - 1 : top_k] > 0) & (best[:, top_k:] == 0)
    return Routed(torch.where(known, ids[:, :top_k], NO_EXPERT), best[:, :top_k], logits)


def _from_sorted(
    order: Any, gates: Any, sizes: Sequence[int], logits: Any, top_k: int
) -> Routed | None:
    """Assignments grouped by expert, `sizes[e]` of them for expert e (JetMoE).

    `order` and `gates`, `[tokens x k]`: the place in the flattened `[tokens, k]` of each, and its
    weight.
    """
    import torch

    if not _is_whole(order) or not _is_real(gates) or not _is_real(logits):
        return None
    if order.ndim != 1 or order.shape != gates.shape:
        return None
    if logits.shape != (order.numel() / top_k, len(sizes)):
        return None
    experts = torch.arange(len(sizes), device=order.device)
    counts = torch.tensor(sizes, device=order.device)
    grouped = torch.repeat_interleave(experts, counts, output_size=order.numel())
    ids = torch.empty_like(grouped).scatter(0, order, grouped)
    weights = torch.empty_like(gates).scatter(0, order, gates.detach())
    return Routed(ids.view(-1, top_k), weights.view(-1, top_k), logits)


def _a_row_a_token(logits: Any, tokens: int) -> torch.Tensor | None:
    if not _is_real(logits) or logits.ndim < 2:
        return None
    rows: torch.Tensor = logits if logits.ndim == 2 else logits.reshape(-1, logits.shape[-1])
    return rows if rows.shape[0] == tokens else None


def _is_whole(value: Any) -> bool:
    import torch

    whole = (torch.int64, torch.int32, torch.int16, torch.uint8)
    return isinstance(value, torch.Tensor) and value.dtype in whole


def _is_real(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.is_floating_point()
