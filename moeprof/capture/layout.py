"""What is kept of a token, and where it stands in the token's row of the device buffer.

One row holds everything, as 16-bit words, so that a step leaves the device in a single copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

UNWRITTEN = -(1 << 15)  # what a row holds before a router writes it; no router returns it


@dataclass(frozen=True)
class Field:
    """`shape` values a token, from word `start` of its row on."""

    start: int
    shape: tuple[int, ...]
    dtype: str  # int16, float16 or int32

    @property
    def words(self) -> int:
        """16-bit words a token."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize // 2


@dataclass(frozen=True)
class Layout:
    """A row of L layers and k experts: token id, expert ids, and what else was asked for.

    `positions` is for engines that know a token's place only on the device.
    """

    layers: int
    top_k: int
    weights: bool = False
    margins: bool = False
    next_layer: bool = False
    positions: bool = False

    @cached_property
    def fields(self) -> dict[str, Field]:
        """Every field by name, in order."""
        each = (self.layers, self.top_k)
        wanted: list[tuple[str, tuple[int, ...], str, bool]] = [
            ("token_id", (1,), "int32", True),
            ("position", (1,), "int32", self.positions),
            ("experts", each, "int16", True),
            ("weights", each, "float16", self.weights),
            ("margins", (self.layers,), "float16", self.margins),
            ("next_experts", each, "int16", self.next_layer),
            ("next_weights", each, "float16", self.next_layer),
        ]
        fields: dict[str, Field] = {}
        start = 0
        for name, shape, dtype, asked in wanted:
            if asked:
                fields[name] = Field(start, shape, dtype)
                start += fields[name].words
        return fields

    @cached_property
    def width(self) -> int:
        """Words a row; even, because the token id is read as 32 bits."""
        words = sum(field.words for field in self.fields.values())
        return words + words % 2

    def tensors(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of `rows`, int16 [T, width]: by name [T, *shape]."""
        import torch

        views = {}
        for name, field in self.fields.items():
            words = rows[:, field.start : field.start + field.words]
            typed = words if field.dtype == "int16" else words.view(getattr(torch, field.dtype))
            views[name] = typed.unflatten(1, field.shape)
        return views

    def arrays(self, rows: NDArray[np.int16]) -> dict[str, NDArray[Any]]:
        """The same of a copy on the host."""
        return {
            name: rows[:, field.start : field.start + field.words]
            .view(field.dtype)
            .reshape(len(rows), *field.shape)
            for name, field in self.fields.items()
        }
