"""Bytes that tokens take in a layer while it computes, counted without computing.

The layer is run in fake tensors, which have shape, type and device but no values: every operation
of the model's own code is seen, so what lives at once is counted and not guessed.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moeprof.capture.stream.caching import layer_cache
from moeprof.capture.stream.opening import OpenedModel

if TYPE_CHECKING:
    import torch


class Activations:
    """Counts for the layers of `opened`; `expert_bytes` are added for every token that computes.

    Experts are left out of the count: which tokens they see cannot be told without values.
    """

    def __init__(self, opened: OpenedModel, expert_bytes: int) -> None:
        self._opened, self._expert_bytes = opened, expert_bytes
        self._known: dict[tuple[Any, ...], int] = {}

    def nbytes(self, layer: int, length: int, tokens: int) -> int:
        """What `layer` takes at most beside its weights, for the last `tokens` of a text.

        The text has `length` tokens; those before are in the layer's cache. Raises whatever the
        model's code raises where it wants values.
        """
        key = (*self._kind(layer), tokens, length)
        if key not in self._known:
            self._known[key] = self._count(layer, tokens, length) + tokens * self._expert_bytes
        return self._known[key]

    def _kind(self, layer: int) -> tuple[Any, ...]:
        """What layers have in common that take the same."""
        cache = layer_cache(self._opened.text_config, layer)
        part = self._opened.skeleton.model.get_submodule(self._opened.places.layer(layer))
        shapes = tuple(tuple(parameter.shape) for parameter in part.parameters())
        return type(cache and cache.layers[layer]), shapes

    def _count(self, layer: int, tokens: int, length: int) -> int:
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode

        cache = layer_cache(self._opened.text_config, layer)
        live = _live_bytes()
        with torch.no_grad(), FakeTensorMode(), self._without_values(layer), live:
            for columns in (length - tokens, tokens):
                live.peak = live.now
                if columns:
                    ids = torch.zeros(1, columns, dtype=torch.long, device=self._device)
                    self._opened.turns.run(layer, ids, None, cache)
        return int(live.peak)

    @property
    def _device(self) -> torch.device:
        return self._opened.skeleton.device

    @contextmanager
    def _without_values(self, layer: int) -> Iterator[None]:
        """Fake weights in all that the forward touches, and experts that return at once."""
        import torch

        stores = [s for m in self._touched(layer) for s in (m._parameters, m._buffers)]
        before = [dict(store) for store in stores]
        experts = [site.module for site in self._opened.sites.get(layer, ()) if site.asks_experts]
        try:
            for store in stores:
                for name, value in store.items():
                    if value is not None:
                        fake = torch.empty(value.shape, dtype=value.dtype, device=self._device)
                        store[name] = fake
            for module in experts:
                module.forward = lambda hidden, *args, **kwargs: torch.empty_like(hidden)
            yield
        finally:
            for module in experts:
                module.__dict__.pop("forward", None)
            for store, own in zip(stores, before, strict=True):
                store.update(own)

    def _touched(self, layer: int) -> list[torch.nn.Module]:
        model, places = self._opened.skeleton.model, self._opened.places
        others = set(model.get_submodule(places.layers).modules())
        frame = [m for m in model.get_submodule(places.text).modules() if m not in others]
        return [*frame, *model.get_submodule(places.layer(layer)).modules()]


def _live_bytes() -> Any:
    """A mode of torch that counts the bytes of tensors that live, `now` and at their `peak`."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class LiveBytes(TorchDispatchMode):  # type: ignore[misc]
        now = peak = 0

        def __init__(self) -> None:
            super().__init__()
            self._seen: dict[int, Any] = {}  # by storage, what tells that it is gone

        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            output = func(*args, **(kwargs or {}))
            for value in tree_leaves(output):
                if isinstance(value, torch.Tensor):
                    self._see(value.untyped_storage())
            return output

        def _see(self, storage: torch.UntypedStorage) -> None:
            key, nbytes = storage._cdata, storage.nbytes()
            if key in self._seen:
                return

            def gone(_: Any) -> None:
                self.now -= nbytes
                del self._seen[key]

            self._seen[key] = weakref.ref(storage, gone)
            self.now += nbytes
            self.peak = max(self.peak, self.now)

    return LiveBytes()
