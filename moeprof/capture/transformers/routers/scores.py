"""What predictors need beside the choice itself: margins, and the next layer's view of a token.

Both are computed where the router is heard, from what it was given and returned, with operations
of fixed shape, and change nothing of the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from moeprof.capture.recorder import Written
from moeprof.capture.transformers.routers.finding import ROUTER_NAMES, RouterSite
from moeprof.capture.transformers.routers.reading import Routed, routing_in_output
from moeprof.errors import InputError

if TYPE_CHECKING:
    import torch

BIASES = ("e_score_correction_bias", "expert_bias", "routing_bias")


@dataclass(frozen=True)
class Extras:
    """What one layer's hook adds to ids and weights."""

    margins: bool
    bias: Callable[[], torch.Tensor | None]  # the correction for choosing, if the router holds one
    next_router: torch.nn.Module | None
    top_k: int

    def written(self, routed: Routed, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Written:
        """Everything of the tokens that the router was called with."""
        given = [*args, *kwargs.values()]
        margins = self._margin(routed, given) if self.margins else None
        if self.next_router is None:
            return Written(routed.ids, routed.weights, margins)
        # Not called as a module: its hooks would take this for the layer's own routing.
        ahead = routing_in_output(self.next_router.forward(given[0].detach()), self.top_k)
        if ahead is None:
            raise ValueError("the next layer's router gave no ids")
        return Written(routed.ids, routed.weights, margins, ahead.ids, ahead.weights)

    def _margin(self, routed: Routed, given: Sequence[Any]) -> torch.Tensor | None:
        """[tokens] selection score of the last chosen expert less that of the first not chosen."""
        if routed.logits is None:
            return None
        bias = self.bias()
        if bias is None:  # some blocks hand it to the router
            experts = routed.logits.shape[-1]
            bias = next((b for b in given[1:] if getattr(b, "shape", None) == (experts,)), None)
        return selection_margin(routed, bias)


def selection_margin(routed: Routed, bias: torch.Tensor | None) -> torch.Tensor:
    """[tokens] gap between the last chosen and the first unchosen selection score.

    The selection score is the router's probability plus its correction bias. Whether probabilities
    are softmax or sigmoid, no router says; its weights do, which are the chosen probabilities, up
    to a factor. A token whose choice does not follow from these scores (where experts are chosen
    by groups, say) has NaN.
    """
    import torch

    assert routed.logits is not None
    logits, ids = routed.logits.detach().float(), routed.ids.long()
    weights = _shares(routed.weights.detach().float())
    gaps, errors = [], []
    for probability in (logits.softmax(-1), logits.sigmoid()):
        errors.append((_shares(probability.gather(1, ids)) - weights).abs().amax(1))
        score = probability if bias is None else probability + bias.detach().float().reshape(-1)
        last = score.gather(1, ids).amin(1)
        gaps.append(last - score.scatter(1, ids, -torch.inf).amax(1))
    gap = torch.where(errors[0] <= errors[1], gaps[0], gaps[1])
    return torch.where(gap >= 0, gap, torch.nan)


def _shares(weights: torch.Tensor) -> torch.Tensor:
    """[tokens, k] as parts of their sum; a single one has nothing to be a part of."""
    return weights if weights.shape[-1] == 1 else weights / weights.sum(-1, keepdim=True)


def plan_extras(
    sites: Mapping[int, Sequence[RouterSite]],
    *,
    margins: bool,
    next_layer: bool,
    top_k: int,
) -> list[Extras] | None:
    """One `Extras` a layer, None if nothing was asked for.

    Raises InputError where a layer has no router to ask, or one that takes more than the hidden
    state.
    """
    if not margins and not next_layer:
        return None
    routers = [_router(layer, layer_sites) for layer, layer_sites in sites.items()]
    following: list[torch.nn.Module | None] = [None] * len(routers)
    if next_layer:
        for site in routers[1:]:
            _check_takes_hidden_alone(site)
        following = [*[site.module for site in routers[1:]], None]
    return [
        Extras(margins, _find_bias(site.module), ahead, top_k)
        for site, ahead in zip(routers, following, strict=True)
    ]


def _router(layer: int, sites: Sequence[RouterSite]) -> RouterSite:
    """The site that is a router by its name too, or the only one that may be."""
    candidates = [site for site in sites if not site.asks_experts]
    named = [site for site in candidates if site.path.rpartition(".")[2] in ROUTER_NAMES]
    if named or len(candidates) == 1:
        return (named or candidates)[0]
    raise InputError(
        f"layer {layer} has no router that tells its scores: record without margins and next_layer"
    )


def _check_takes_hidden_alone(site: RouterSite) -> None:
    required = [
        parameter.name
        for parameter in inspect.signature(site.module.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) != 1:
        raise InputError(
            f"{site.path} is called with {', '.join(required)}: what it would make of another "
            "layer's hidden state cannot be asked; record without next_layer"
        )


def _find_bias(router: torch.nn.Module) -> Callable[[], torch.Tensor | None]:
    """How to get at the correction bias that a router holds, itself or in a module of its own."""
    for module in router.modules():
        for name in BIASES:
            if getattr(module, name, None) is not None:
                return partial(getattr, module, name)
    return lambda: None
