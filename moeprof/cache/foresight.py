"""When every expert of an event is needed next: what Belady knows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.events import EventChunk


def next_steps(chunks: Iterable[EventChunk], rows: int, experts: int) -> NDArray[np.int32]:
    """[layers, rows, k] the step that names the same expert next, -1 for none, of `rows` in all.

    It stands where a step names an expert first and last; places between hold -1. Four bytes an id,
    and nothing of the ids is kept.
    """
    from moeprof.cache.kernels import link_uses

    future = np.zeros((0, rows, 0), np.int32)
    seen = np.zeros((0, experts, 3), np.int64)
    begin = 0
    for chunk in chunks:
        layers, more, k = chunk.experts.shape
        if not begin:
            future = np.full((layers, rows, k), -1, np.int32)
            seen = np.full((layers, experts, 3), -1, np.int64)
        for layer in range(layers):
            link_uses(
                chunk.experts[layer], chunk.recorded[layer], chunk.starts, chunk.first_event, begin,
                seen[layer], future[layer],
            )  # fmt: skip
        begin += more
    return future


def of_rows(future: NDArray[np.int32], begin: int, rows: int) -> NDArray[np.int32]:
    """Those of a chunk, side by side in memory as the compiled loop takes them."""
    return np.ascontiguousarray(future[:, begin : begin + rows])
