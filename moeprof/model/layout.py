"""The settled facts that the counting of tensors works from: no default is open any more."""

from __future__ import annotations

from dataclasses import dataclass

from moeprof.model.architectures import Architecture
from moeprof.model.attention import Attention, LinearAttention
from moeprof.model.config_fields import ConfigFields


@dataclass(frozen=True)
class Layout:
    """Sizes and how many layers have which part."""

    fields: ConfigFields
    architecture: Architecture
    where: str
    layers: int
    attention: Attention
    linear: LinearAttention | None
    moe_layers: int
    indexed_layers: int
    expert_width: int
    shared_experts: int

    @property
    def attention_layers(self) -> int:
        """Layers with keys and values."""
        return self.layers - (self.linear.layers if self.linear else 0)
