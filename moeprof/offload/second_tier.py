"""Host memory as a cache of the drives: an LRU that is asked for what the GPU's cache missed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.results import MissStream


def replay_second_tier(stream: MissStream, experts: int, slots: int) -> NDArray[np.int64]:
    """[layers, steps] misses of `stream` that miss host memory too: reads from the drives.

    One LRU of `slots` experts of all layers, as the page cache is one; the misses of a step come
    layer by layer. It starts full with the lowest ids of every layer, as a model that was just
    loaded; what the first tier hits is never asked for here and ages.
    """
    from moeprof.offload.kernels import lru_misses

    layers, steps = stream.counts.shape
    if slots >= layers * experts:
        return np.zeros((layers, steps), np.int64)
    if slots < 1:
        return stream.counts
    requests, event = _in_order(stream, experts)
    # Item layer x experts + id, by id first: the last that was loaded is the newest.
    loaded = np.arange(layers * experts).reshape(layers, experts).T.ravel()[:slots]
    missed = lru_misses(requests, loaded, layers * experts, slots)
    reads = np.bincount(event[missed], minlength=layers * steps)
    return reads.reshape(steps, layers).T


def _in_order(stream: MissStream, experts: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Items, and the event step x layers + layer of each, as the engine asks for them."""
    layers, steps = stream.counts.shape
    items = np.concatenate(
        [layer * experts + ids.astype(np.int64) for layer, ids in enumerate(stream.experts)]
    )
    event = np.concatenate(
        [
            np.repeat(np.arange(steps) * layers + layer, counts)
            for layer, counts in enumerate(stream.counts)
        ]
    )
    order = np.argsort(event, kind="stable")
    return items[order], event[order]
