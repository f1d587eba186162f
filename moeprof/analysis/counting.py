"""Assignments per group, layer and expert: the one pass over the ids that load is made of."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from moeprof.trace import Trace


def count_assignments(trace: Trace, group: NDArray[np.int32], groups: int) -> NDArray[np.int64]:
    """[groups, layers, experts] assignments of the tokens of each group.

    `group` [tokens] holds each token's group below `groups`. Layers run on threads of their own.
    """
    from moeprof.analysis.kernels import add_assignments  # Numba costs a second to import

    counts = np.zeros((len(trace.layers), groups, trace.experts_per_layer), np.int64)

    def count_layer(ordinal: int) -> None:
        for part in trace.batches(trace.layers[ordinal]):
            rows = group[part.start : part.start + len(part.experts)]
            if part.recorded is None:
                add_assignments(part.experts, rows, counts[ordinal])
            else:
                add_assignments(part.experts[part.recorded], rows[part.recorded], counts[ordinal])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(count_layer, range(len(trace.layers))))
    return np.ascontiguousarray(counts.swapaxes(0, 1))


def expert_load(trace: Trace) -> NDArray[np.int64]:
    """[layers, experts] assignments of the whole trace."""
    if trace.counts_only:
        load: NDArray[np.int64] = trace.counts.sum(axis=0)
        return load
    whole: NDArray[np.int64] = count_assignments(trace, np.zeros(trace.tokens, np.int32), 1)[0]
    return whole
