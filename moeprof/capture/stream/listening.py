"""What the router of the layer in turn decides, by the readers that recording with hooks has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from moeprof.capture.recorder import Written
from moeprof.capture.transformers.routers.finding import RouterSite
from moeprof.capture.transformers.routers.reading import (
    Routed,
    routing_in_arguments,
    routing_in_output,
)
from moeprof.capture.transformers.routers.scores import Extras
from moeprof.errors import InputError

if TYPE_CHECKING:
    import torch


class RouterListener:
    """The hooks of one layer. The first site that gives ids is believed, and no other."""

    def __init__(self, sites: Sequence[RouterSite], top_k: int, extras: Extras | None) -> None:
        self._sites = sites
        self._top_k = top_k
        self._extras = extras
        self._believed: RouterSite | None = None
        self._heard: list[Written] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear the routers while the body runs."""
        with ExitStack() as stack:
            for site in self._sites:
                stack.callback(self._hook(site).remove)
            yield

    def take(self, tokens: int) -> tuple[torch.Tensor, ...]:
        """Ids, weights [tokens, k] and margins [tokens] if asked for, of the forward just run.

        InputError if the router has not decided for `tokens` tokens.
        """
        import torch

        heard, self._heard = self._heard, []
        fields = [field for field in zip(*heard, strict=True) if field[0] is not None]
        joined = tuple(torch.cat(list(field)) for field in fields)
        if not joined or len(joined[0]) != tokens:
            path = self._sites[0].path
            raise InputError(f"{path}: its choice for every token cannot be read, as hooks do")
        return joined

    def _hook(self, site: RouterSite) -> Any:
        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._hear(site, routing_in_arguments(args, kwargs, self._top_k), args, kwargs)

        def after(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            self._hear(site, routing_in_output(output, self._top_k), args, kwargs)

        if site.asks_experts:
            return site.module.register_forward_pre_hook(before, with_kwargs=True)
        return site.module.register_forward_hook(after, with_kwargs=True)

    def _hear(self, site: RouterSite, routed: Routed | None, args: Any, kwargs: Any) -> None:
        if routed is None or self._believed not in (None, site):
            return
        self._believed = site
        if self._extras is None:
            self._heard.append(Written(routed.ids, routed.weights))
        else:
            self._heard.append(self._extras.written(routed, args, kwargs))
