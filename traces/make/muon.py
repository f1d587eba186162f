"""Muon for matrices and stacks of matrices: momentum, then the nearest orthogonal matrix.

An expert's weight is one matrix of a stack, so equal shapes of all layers are orthogonalized in
one batched product: 512 expert matrices cost one call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# The usual quintic Newton-Schulz coefficients: they lift all singular values into about 0.7..1.2
# in five rounds, which is enough; exact orthogonality does not train better.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalize(stack: Tensor, rounds: int = 5) -> Tensor:
    """Each matrix of [n, rows, columns] with its singular values moved to about one."""
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.mT if tall else stack
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Nesterov momentum and orthogonalized steps; the learning rate is given at each step."""

    def __init__(self, weights: Iterable[nn.Parameter], momentum: float, decay: float) -> None:
        self._momentum, self._decay = momentum, decay
        self._groups: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for weight in weights:
            self._groups[(weight.shape[-2], weight.shape[-1])].append(weight)
        self._buffers = {w: torch.zeros_like(w) for group in self._groups.values() for w in group}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every weight from its gradient, then drop the gradient."""
        for (rows, columns), group in self._groups.items():
            steps = orthogonalize(torch.cat([self._direction(w) for w in group]))
            scale = rate * max(1.0, rows / columns) ** 0.5
            sizes = [w.numel() // (rows * columns) for w in group]
            for weight, step in zip(group, steps.split(sizes), strict=True):
                weight.mul_(1 - rate * self._decay).sub_(step.view_as(weight), alpha=scale)
                weight.grad = None

    def _direction(self, weight: nn.Parameter) -> Tensor:
        assert weight.grad is not None
        buffer = self._buffers[weight].lerp_(weight.grad, 1 - self._momentum)
        nesterov = weight.grad.lerp(buffer, self._momentum)
        return nesterov.view(-1, weight.shape[-2], weight.shape[-1])
