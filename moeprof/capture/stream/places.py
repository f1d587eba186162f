"""Where the decoder layers stand in a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moeprof.capture.transformers.routers.finding import RouterSite
from moeprof.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Places:
    """Where the decoder layers stand in the model."""

    text: str  # path of the model whose forward runs them
    layers: str  # path of their list
    last: int  # the last layer that is recorded: none behind it is read

    @classmethod
    def of(cls, model: torch.nn.Module, sites: Mapping[int, Sequence[RouterSite]]) -> Places:
        """From where the routers are. InputError if the layers are no list of modules."""
        import torch

        path = next(iter(sites.values()))[0].path
        found = re.match(r"(.*?)\.\d+\.", path)
        layers = found[1] if found else ""
        if not layers or not isinstance(model.get_submodule(layers), torch.nn.ModuleList):
            raise InputError(f"{type(model).__name__}: {path} is in no list of layers")
        return cls(layers.rpartition(".")[0], layers, max(sites))

    def layer(self, index: int) -> str:
        """The path of one layer."""
        return f"{self.layers}.{index}"
