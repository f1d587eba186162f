"""Everything of a layer's turn lies on the model's device.

The meta device stands for a GPU: torch refuses a product of its tensors with the CPU's as it does
there, and needs no memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moeprof.capture.stream.activations import Activations
from moeprof.capture.stream.caching import layer_cache
from moeprof.capture.stream.listening import RouterListener
from moeprof.capture.stream.opening import open_model
from moeprof.capture.transformers.routers.scores import plan_extras

from .models import make, save


@pytest.mark.parametrize("family", ["m3", "gpt_oss"])
def test_pieces_stay_on_the_device(family: str, torch: Any, tmp_path: Path) -> None:
    """Masks, keys, indexer keys, windows, ids, weights and margins."""
    opened = open_model(save(make(family), tmp_path / "model"), "meta", "float32")
    top_k, layer = opened.described.top_k, opened.places.last
    extras = plan_extras(opened.sites, margins=True, next_layer=False, top_k=top_k)
    assert extras is not None
    hears = RouterListener(opened.sites[layer], top_k, extras[-1])
    cache = layer_cache(opened.text_config, layer)
    assert cache is not None
    with torch.no_grad(), Activations(opened, 0)._without_values(layer):
        for columns in (20, 7):
            ids = torch.zeros(1, columns, dtype=torch.long, device="meta")
            with hears.listening():
                hidden = opened.turns.run(layer, ids, None, cache)
            heard = hears.take(columns)
            assert len(heard) == 3
            assert {tensor.device.type for tensor in (hidden, *heard)} == {"meta"}
    kept = [value for value in vars(cache.layers[layer]).values() if torch.is_tensor(value)]
    assert cache.get_seq_length() == 27 and len(kept) >= 2
    assert {tensor.device.type for tensor in kept} == {"meta"}
