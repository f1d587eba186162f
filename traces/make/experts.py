"""Experts for training on CPU: sort once, multiply per expert, count the load.

The library's own `grouped_mm` experts gather with an index whose backward is a slow scatter-add
on CPU. A routing is a permutation of (token, choice) pairs, so its backward is the inverse
permutation and a sum: this file says so to autograd. The result is the same function of the same
weights, and the shipped model does not use this file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "sorted_mm"


class _Dispatch(torch.autograd.Function):
    """Copy each token once per choice, in the order of experts."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, inverse: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.top_k = top_k
        return tokens.index_select(0, order // top_k)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        pairs = grad.index_select(0, inverse)
        return pairs.view(-1, ctx.top_k, grad.shape[-1]).sum(1), None, None, None


class _Permute(torch.autograd.Function):
    """Rows in a new order; the gradient takes the inverse order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return rows.index_select(0, inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        return grad.index_select(0, order), None, None


def _linear(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return torch.ops.transformers.grouped_mm_fallback(rows, weight.transpose(-2, -1), ends)


def sorted_experts(
    self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The MoE experts' forward; leaves the load of each expert in `self.load`."""
    top_k = top_k_index.shape[-1]
    chosen, order = torch.sort(top_k_index.reshape(-1), stable=True)
    inverse = torch.argsort(order)
    load = torch.zeros_like(self.load).scatter_add_(0, chosen, torch.ones_like(chosen))
    self.load.copy_(load)
    ends = load.cumsum(0).to(torch.int32)
    rows = _Dispatch.apply(hidden_states, order, inverse, top_k)
    rows = self._apply_gate(_linear(rows, self.gate_up_proj, ends))
    rows = _Permute.apply(_linear(rows, self.down_proj, ends), order, inverse)
    rows = rows.view(-1, top_k, rows.shape[-1])
    return (rows * top_k_weights.unsqueeze(-1)).sum(1)


def use_sorted_experts(model: nn.Module) -> list[nn.Module]:
    """Switch the model to these experts; returns its MoE blocks in layer order."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, sorted_experts)
    model.set_experts_implementation(NAME)
    blocks = [layer.mlp for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    for block in blocks:
        count = block.gate.num_experts
        block.experts.register_buffer("load", torch.zeros(count, dtype=torch.int64), False)
    return blocks
