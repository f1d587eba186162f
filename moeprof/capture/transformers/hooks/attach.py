"""Hooks on a model and its routers: what they do eagerly, and what compiled code does instead.

A forward hook that returns something replaces the module's output, so ours return nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from moeprof.capture.recorder import Written
from moeprof.capture.transformers.boundaries import wrap_method
from moeprof.capture.transformers.hooks import graph_ops
from moeprof.capture.transformers.hooks.session import CaptureSession
from moeprof.capture.transformers.requests.forward import cache_columns, forward_parameters
from moeprof.capture.transformers.routers.finding import RouterSite
from moeprof.capture.transformers.routers.reading import (
    Routed,
    routing_in_arguments,
    routing_in_output,
)
from moeprof.capture.transformers.routers.scores import Extras

if TYPE_CHECKING:
    import torch


class Tap:
    """Where compiled code of one model reaches us: its number and its anchors."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        import torch

        self.operators = graph_ops.register()
        self.number = graph_ops.new_tap()
        self.claim = graph_ops.make_claims()
        self._anchors = {}
        for device in dict.fromkeys(devices):
            with torch.inference_mode(False):
                anchor = torch.zeros(1, device=device)
            torch._dynamo.mark_static_address(anchor)  # or no CUDA graph may change it
            self._anchors[device] = anchor
        self.first = self._anchors[devices[0]]
        self.by_slot = [self._anchors[device] for device in devices]


def attach(
    stack: ExitStack,
    model: torch.nn.Module,
    sites: Mapping[int, Sequence[RouterSite]],
    top_k: int,
    session: CaptureSession,
    tap: Tap,
    extras: Sequence[Extras] | None,
) -> None:
    """Put the hooks in; `stack` takes them out. `extras`: of each layer, if any were asked for.

    Nothing that is put in holds on to the model: its user may let it go while it is recorded.
    """
    graph_ops.connect(tap.number, session)
    stack.callback(graph_ops.disconnect, tap.number)
    for slot, layer_sites in enumerate(sites.values()):
        extra = None if extras is None else extras[slot]
        stack.callback(_LayerListener(slot, layer_sites, top_k, session, tap, extra).remove)
    names = forward_parameters(model)
    _attach_to_forward(stack, model, names, session, tap)
    recorded = weakref.ref(model)

    def around_generate(generate: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return session.around_generate(recorded(), generate, args, kwargs)

    def around_get_compiled_call(get: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        compiled = get(*args, **kwargs)
        return lambda *args, **kwargs: session.around_forward(names, compiled, args, kwargs)

    stack.callback(wrap_method(model, "generate", around_generate))
    stack.callback(wrap_method(model, "get_compiled_call", around_get_compiled_call))


def _attach_to_forward(
    stack: ExitStack,
    model: torch.nn.Module,
    names: Sequence[str],
    session: CaptureSession,
    tap: Tap,
) -> None:
    is_compiling = _is_compiling()

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_compiling():
            if not session.bounded:
                _trace_begin(tap, names, args, kwargs)
        elif not session.captured() and not session.bounded:
            session.begin(names, args, kwargs)

    def after(module: Any, args: tuple[Any, ...], output: Any) -> None:
        if session.bounded:
            return
        if is_compiling():
            _trace_end(tap)
        else:
            session.end(output)

    stack.callback(model.register_forward_pre_hook(before, with_kwargs=True).remove)
    stack.callback(model.register_forward_hook(after).remove)


def _is_compiling() -> Callable[[], bool]:
    """torch's own function, which a compiler knows to be true where it traces."""
    import torch

    asked: Callable[[], bool] = torch.compiler.is_compiling
    return asked


def _trace_begin(
    tap: Tap, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Put `begin` into the graph, with what `read_forward` would read."""
    import torch

    given = {**dict(zip(names, args, strict=False)), **kwargs}
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    tokens = ids if ids is not None else embeds
    if tokens is None or tokens.ndim < 2 or given.get("cu_seq_lens_q") is not None:
        return
    rows, columns = tokens.shape[0], tokens.shape[1]
    mask = given.get("attention_mask")
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    positions = given.get("position_ids")
    if positions is not None and positions.ndim != 2:
        positions = None
    cache = given.get("past_key_values")
    past = None if cache is None else cache_columns(cache)
    torch.ops.moeprof.begin(
        tap.first,
        tap.number,
        rows,
        columns,
        -1 if past is None else past,
        cache is not None,
        ids,
        mask,
        positions,
    )


def _trace_end(tap: Tap) -> None:
    import torch

    torch.ops.moeprof.end(tap.first, tap.number)


class _LayerListener:
    """The hooks of one layer. The first site that gives ids is believed; the rest is removed."""

    def __init__(
        self,
        slot: int,
        sites: Sequence[RouterSite],
        top_k: int,
        session: CaptureSession,
        tap: Tap,
        extras: Extras | None,
    ) -> None:
        self._slot = slot
        self._top_k = top_k
        self._session = session
        self._tap = tap
        self._anchor = tap.by_slot[slot]
        self._extras = extras
        self._believed: int | None = None  # which of the sites
        self._plain = False  # the believed router returns ids of [tokens, k] as they are recorded
        self._handles = {index: self._hook(index, site) for index, site in enumerate(sites)}

    def remove(self) -> None:
        """Take the hooks out."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def _hook(self, index: int, site: RouterSite) -> Any:
        is_compiling = _is_compiling()

        def experts_are_called(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if is_compiling():
                self._trace(index, routing_in_arguments(args, kwargs, self._top_k), args, kwargs)
            else:
                self._hear(index, routing_in_arguments, (args, kwargs), args, kwargs)

        def router_returned(module: Any, args: tuple[Any, ...], output: Any) -> None:
            router_returned_to(module, args, {}, output)

        def router_returned_to(
            module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            if is_compiling():
                self._trace(index, routing_in_output(output, self._top_k), args, kwargs)
            elif not self._plain or not self._hear_plainly(output):
                self._hear(index, routing_in_output, (output,), args, kwargs)

        if site.asks_experts:
            return site.module.register_forward_pre_hook(experts_are_called, with_kwargs=True)
        if self._extras is None:
            return site.module.register_forward_hook(router_returned)
        return site.module.register_forward_hook(router_returned_to, with_kwargs=True)

    def _hear_plainly(self, output: Any) -> bool:
        """The lean way for a router that has returned `(logits, weights, ids)` before."""
        try:
            return self._session.route_step(self._slot, output[2], output[1])
        except Exception as error:
            self._session.fail(error, "recording a router")
            return True

    def _written(self, routed: Routed, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Written:
        if self._extras is None:
            return Written(routed.ids, routed.weights)
        return self._extras.written(routed, args, kwargs)

    def _trace(
        self,
        index: int,
        routed: Routed | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Put `route` into the graph, unless another site of the layer is believed."""
        import torch

        if routed is not None and self._tap.claim(self._slot, index):
            fields = [
                None if field is None else field.detach()
                for field in self._written(routed, args, kwargs)
            ]
            torch.ops.moeprof.route(self._anchor, self._tap.number, self._slot, *fields)

    def _hear(
        self,
        index: int,
        read: Callable[..., Routed | None],
        values: tuple[Any, ...],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        if self._believed is not None and self._believed != index:
            return
        try:
            routed = read(*values, self._top_k)
            if routed is not None:
                self._believe(index)
                self._plain = self._extras is None and _is_plain(values[0], routed)
                self._session.route(self._slot, self._written(routed, args, kwargs))
        except Exception as error:
            self._session.fail(error, "recording a router")

    def _believe(self, index: int) -> None:
        if self._believed == index:
            return
        self._believed = index
        for other in [other for other in self._handles if other != index]:
            self._handles.pop(other).remove()


def _is_plain(output: Any, routed: Routed) -> bool:
    """Whether `routed` stands in `output` as it is, in the usual places."""
    usual = isinstance(output, tuple) and len(output) >= 3
    return usual and output[2] is routed.ids and output[1] is routed.weights
