"""What one layer keeps of the tokens before, so that a text may pass through it in pieces."""

from __future__ import annotations

from typing import Any


def layer_cache(config: Any, layer: int) -> Any | None:
    """transformers' cache, empty, of `layer` of the model of text configuration `config`.

    The model's forward makes masks and positions of what the first layer of a kind has seen. Here
    one layer alone sees tokens, so it stands in the place of all. None for a layer whose state is
    no list of keys and values: linear attention and convolutions take a text whole.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

    cache = DynamicCache(config=config)
    own = cache.layers[layer] if layer < len(cache.layers) else None
    if not isinstance(own, DynamicLayer) or isinstance(own, LinearAttentionCacheLayerMixin):
        return None
    cache.layers = [own] * len(cache.layers)
    return cache
