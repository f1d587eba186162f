"""Hooks on the routers of vLLM's MoE layers.

A router calls one function with the logical ids it chose, before vLLM maps them to the slots of
its load balancer. That function may be traced by torch.compile or captured in a CUDA graph, so
what ours does is one copy to a fixed address.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moeprof.errors import InputError

if TYPE_CHECKING:
    import torch

    from moeprof.capture.vllm.buffer import StepBuffer
    from moeprof.capture.vllm.row_layout import Own

Capture = Callable[["torch.Tensor"], None]


@dataclass(frozen=True)
class Site:
    """Where the ids of one native layer can be had."""

    layer: int
    owner: Any  # what holds the capture function: a router, or a module that routes itself


def find_sites(model: torch.nn.Module, layers: int) -> dict[int, Site]:
    """By native layer, every router in the target model that hands out its ids.

    `layers` is how many the model has: a draft's layers are numbered on behind them. Raises
    InputError if one of them cannot be recorded.
    """
    from vllm.model_executor.layers.fused_moe.layer import MoERunner

    sites: dict[int, Site] = {}
    for module in model.modules():
        source = _is_source(module)
        if not source and not isinstance(module, MoERunner):
            continue
        layer = int(module.layer_id)
        if layer >= layers:
            continue
        if layer in sites:
            raise InputError(f"layer {layer} has more than one router, which are not told apart")
        sites[layer] = Site(layer, module if source else _router(module, layer))
    return dict(sorted(sites.items()))


def _is_source(module: Any) -> bool:
    """Whether a model's own module stands in for a router, as vLLM's protocol has it."""
    return hasattr(module, "layer_id") and "capture_fn" in vars(module)


def _router(runner: Any, layer: int) -> Any:
    if getattr(runner._quant_method, "is_monolithic", False):
        kernel = type(runner._quant_method).__name__
        raise InputError(
            f"layer {layer}: {kernel} routes inside of one fused kernel, which hands out no ids; "
            "choose another MoE backend, or use vLLM's own --enable-return-routed-experts"
        )
    if not hasattr(runner.router, "set_capture_fn"):
        raise InputError(f"layer {layer}: {type(runner.router).__name__} hands out no ids")
    return runner.router


class Tap:
    """The capture function of one layer: vLLM's own first, if it has one, then the copy."""

    def __init__(
        self, buffer: StepBuffer, slot: int, own: Callable[[torch.Tensor], Own | None] | None
    ) -> None:
        self._rows = buffer.rows
        self._words = buffer.words(slot)
        self._top_k = buffer.layout.top_k
        self._own = own
        self.previous: Capture | None = None

    def __call__(self, ids: torch.Tensor) -> None:
        """Keep `ids` [n, k]. What has another shape is not kept, and shows as not recorded."""
        if self.previous is not None:
            self.previous(ids)
        if ids.shape[-1] != self._top_k:
            return
        if self._own is None:
            kept = ids[: self._rows.shape[0]]  # a step that is too large must not raise in there
            self._rows[: kept.shape[0], self._words].copy_(kept, non_blocking=True)
            return
        own = self._own(ids)
        if own is not None and own.step_first + own.count <= self._rows.shape[0]:
            kept = ids[own.first : own.first + own.count]
            rows = self._rows[own.step_first : own.step_first + own.count]
            rows[:, self._words].copy_(kept, non_blocking=True)

    def follow(self, capture: Capture | None) -> None:
        """Be called after `capture`, which vLLM sets, whether before or after us."""
        self.previous = capture

    def take_over(self, owner: Any) -> None:
        """Stand where `owner` calls, and behind whatever it was told to call."""
        if owner.capture_fn is not self:
            self.follow(owner.capture_fn)
            owner.capture_fn = self
        if hasattr(owner, "set_capture_fn"):
            owner.set_capture_fn = self.follow


def tap_routers(
    sites: Mapping[int, Site],
    buffer: StepBuffer,
    own: Callable[[torch.Tensor], Own | None] | None,
) -> Callable[[], None]:
    """Put a tap on every router, in order of layers, for good.

    To be called again once vLLM has set its own: not every module tells of it.
    """
    taps = [Tap(buffer, slot, own) for slot in range(len(sites))]

    def take_over() -> None:
        for tap, site in zip(taps, sites.values(), strict=True):
            tap.take_over(site.owner)

    take_over()
    return take_over
