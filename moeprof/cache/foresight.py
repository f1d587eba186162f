"""When every expert of an event is needed next: what Belady knows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.events import EventChunk


def next_steps(chunks: list[EventChunk], experts: int) -> list[NDArray[np.int32]]:
    """For each chunk, [layers, rows, k] the step that names the same expert next, -1 for none.

    Four bytes an id: five times the ids in all. Works from the last chunk back.
    """
    from moeprof.cache.kernels import next_uses

    if not chunks:
        return []
    seen = np.full((chunks[0].experts.shape[0], experts), -1, np.int32)
    found = []
    for chunk in reversed(chunks):
        future = np.full(chunk.experts.shape, -1, np.int32)
        for layer, named in enumerate(seen):
            next_uses(
                chunk.experts[layer], chunk.recorded[layer], chunk.starts, chunk.first_event, named,
                future[layer],
            )  # fmt: skip
        found.append(future)
    return found[::-1]
