"""The parameters of a model as groups of equal tensors, sorted into classes.

Real checkpoints mix formats by class (experts in FP4, attention in FP8, embeddings in BF16), and
ranks split or replicate by class, so every count of bytes starts from this inventory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from moeprof.errors import ModelError

TENSOR_CLASSES = (
    "routed",  # the experts a router chooses from
    "shared",  # experts that every token passes, and their gates
    "attention",  # projections, their biases, and the norms on queries and keys
    "dense",  # feed-forward layers without a router
    "indexer",  # the branch that selects blocks for sparse attention
    "embedding",  # token table, read one row a token
    "head",  # output projection; empty where it is tied to the embedding
    "router",  # gate weights and their biases
    "vision",  # vision tower and projector
    "norms",  # the two norms of a layer and the last one
)


@dataclass(frozen=True)
class TensorGroup:
    """`count` tensors of one `shape` (rows first, as stored) with one role in the model."""

    tensor_class: str
    name: str
    shape: tuple[int, ...]
    count: int

    def __post_init__(self) -> None:
        if self.tensor_class not in TENSOR_CLASSES:
            raise ModelError(f"'{self.tensor_class}' is no tensor class: {list(TENSOR_CLASSES)}")
        if self.count < 0 or not self.shape or min(self.shape) < 1:
            raise ModelError(f"tensor {self.name}: shape {self.shape} x {self.count} is no tensor")

    @property
    def parameters(self) -> int:
        """Parameters of the whole group."""
        return math.prod(self.shape) * self.count

    @property
    def is_vector(self) -> bool:
        """Norm weights and biases: one dimension, which no checkpoint quantizes."""
        return len(self.shape) == 1


def count_parameters(tensors: Iterable[TensorGroup]) -> dict[str, int]:
    """Parameters per tensor class, every class present, in the order of `TENSOR_CLASSES`."""
    counts = dict.fromkeys(TENSOR_CLASSES, 0)
    for group in tensors:
        counts[group.tensor_class] += group.parameters
    return counts


def vectors(tensor_class: str, count: int, **lengths: int) -> list[TensorGroup]:
    """A group of `count` vectors for each name and length."""
    return [TensorGroup(tensor_class, name, (n,), count) for name, n in lengths.items()]
