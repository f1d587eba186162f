"""Finding routers by what they are, not by the names of their classes.

Hooks go to every module that may be the router of a MoE layer, and a hook believes a module only
once `readers` finds ids in what it returned. Where a layer's router returns something else, its
experts module is asked instead: it is called with them. docs/families.md lists what that finds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moeprof.errors import InputError

if TYPE_CHECKING:
    import torch

ROUTER_NAMES = frozenset({"gate", "router", "gating", "wg", "moe_gate", "topk_router"})
OTHER_TOWERS = ("vision", "visual", "audio")

# Model types whose routers return ids that do not mean what they say.
UNFAITHFUL = {
    "longcat_flash": "its router also chooses experts that compute nothing, and a trace has no "
    "number for those",
    "zaya": "its router writes expert 0 where a token skips all experts",
}


@dataclass(frozen=True)
class RouterSite:
    """A module that may tell which experts the tokens of one layer go to."""

    layer: int  # native index, the first number in the module's path
    path: str
    module: torch.nn.Module
    asks_experts: bool  # a hook before the experts module, used where no router speaks


def find_router_sites(
    model: torch.nn.Module, layers: Sequence[int], experts: int
) -> dict[int, list[RouterSite]]:
    """By native layer index, in order, the modules of `model` to listen to; routers first.

    `layers` are the MoE layers and `experts` the experts of each, as the configuration says.
    Raises InputError if there are none, or if two towers of the model have some.
    """
    towers: dict[str, dict[int, list[RouterSite]]] = {}
    for path, module in model.named_modules():
        tower, layer = _place(path)
        if layer not in layers or any(word in tower for word in OTHER_TOWERS):
            continue
        asks_experts = path.rpartition(".")[2] == "experts"
        if asks_experts or _may_route(path, module, experts):
            sites = towers.setdefault(tower, {}).setdefault(layer, [])
            sites.append(RouterSite(layer, path, module, asks_experts))
    if not towers:
        raise InputError(
            f"{type(model).__name__} has no router that can be recorded: looked in layers "
            f"{list(layers)} for a module named {', '.join(sorted(ROUTER_NAMES))} or experts, "
            f"or with a weight of {experts} rows. Is this the model object, fully built?"
        )
    if len(towers) > 1:
        raise InputError(
            f"{type(model).__name__} has MoE layers in several towers "
            f"({', '.join(sorted(towers))}): record the one you mean, by its own module"
        )
    (found,) = towers.values()
    return {layer: sorted(found[layer], key=lambda s: s.asks_experts) for layer in sorted(found)}


def _place(path: str) -> tuple[str, int]:
    """The tower that `path` is in and its layer, -1 if it is in none."""
    match = re.match(r"(?:(.*?)\.)?(\d+)\.", path)
    return (match[1] or "", int(match[2])) if match else ("", -1)


def _may_route(path: str, module: torch.nn.Module, experts: int) -> bool:
    """Named like a router, or with a matrix of one row an expert, and not one expert's own.

    Experts that are rows of an embedding (Doge) have no router that tells of them.
    """
    import torch

    parts = path.split(".")
    if "experts" in parts or isinstance(module, torch.nn.Embedding):
        return False
    if parts[-1] in ROUTER_NAMES:
        return True
    weight = getattr(module, "weight", None)
    shape = tuple(getattr(weight, "shape", ()))
    return len(shape) == 2 and shape[0] == experts
